"""How long a step takes on n processes: ``python benchmarks/scaling.py [--measure] [--validate]``.

A model of four lines over measured constants (``results/scaling.json``). ``--measure`` measures the costs of one
process anew, ``--validate`` starts two processes and prints what the model says beside what they took. All that is
said about more than two processes, or about faster devices (``--faster``, ``--bandwidth``), is extrapolated.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "scaling.json"
PROCESSES = (1, 2, 8, 64, 256, 1024)


@dataclass(frozen=True, slots=True)
class Costs:
    """What one image costs one process, in seconds of one processor core, and what is sent."""

    decode: float  # a 640 x 480 JPEG to augmented pixels
    teacher: float  # forward, selection and preparation
    student: float  # forward, detection loss, backward
    criterion: float  # distillation terms, forward and backward
    coco: float  # COCO's numbers, for each validation image, on one core
    gradient_bytes: int
    image_side: int  # pixels, of teacher and student


@dataclass(frozen=True, slots=True)
class Network:
    """How processes are connected."""

    bandwidth: float  # bytes a second that a process sends
    latency: float  # seconds of one message

    def all_reduce(self, processes: int, size: int) -> float:
        """Seconds of a ring: each process sends 2 (n - 1) messages of size / n bytes."""
        messages = 2 * (processes - 1)
        return messages / processes * size / self.bandwidth + messages * self.latency


@dataclass(frozen=True, slots=True)
class Setting:
    """How a training is spread."""

    images: int = 8  # of each process in a step
    faster: float = 1.0  # the device against the core that costs were measured on
    cores: int = 1  # that decode images, of each process
    steps: int = 1000  # between two evaluations
    validation: int = 5000  # images


@dataclass(frozen=True, slots=True)
class Step:
    """A prediction, in seconds of the clock."""

    processes: int
    compute: float
    input: float  # goes on beside compute
    communication: float  # an upper bound: in truth a part of it goes on beside the backward pass
    evaluation: float  # shared out over the steps between two of them

    @property
    def seconds(self) -> float:
        """Of one step, all in all."""
        return max(self.compute + self.communication, self.input) + self.evaluation

    @property
    def slowest(self) -> str:
        """What takes longest."""
        parts = ("compute", "input", "communication", "evaluation")
        return max(parts, key=lambda name: float(getattr(self, name)))


def predict(costs: Costs, network: Network, setting: Setting, processes: int) -> Step:
    """One step of so many processes."""
    compute = setting.images * (costs.teacher + costs.student + costs.criterion) / setting.faster
    # One all-reduce of the gradients, one of the normalisers.
    communication = network.all_reduce(processes, costs.gradient_bytes) + network.all_reduce(processes, 64)
    seen = setting.validation / processes * (costs.student / 3 / setting.faster + costs.decode / setting.cores)
    evaluation = (seen + setting.validation * costs.coco) / setting.steps
    return Step(processes, compute, setting.images * costs.decode / setting.cores, communication, evaluation)


def table(costs: Costs, network: Network, setting: Setting, processes: Sequence[int] = PROCESSES) -> list[str]:
    """A line for each number of processes."""
    head = f"{'processes':>9} {'step s':>9} {'compute':>9} {'input':>9} {'commun.':>9} {'eval.':>9} {'images/s':>10}"
    lines = [f"{head} {'efficiency':>10}  slowest"]
    alone = setting.images / predict(costs, network, setting, 1).seconds
    for count in processes:
        step = predict(costs, network, setting, count)
        rate = count * setting.images / step.seconds
        lines.append(
            f"{count:>9} {step.seconds:>9.4g} {step.compute:>9.4g} {step.input:>9.4g} {step.communication:>9.3g} "
            f"{step.evaluation:>9.3g} {rate:>10.4g} {100 * rate / alone / count:>9.0f}%  {step.slowest}"
        )
    return lines


def cache_bytes(
    queries: int, classes: int, layers: int, tokens: int, channels: int, boxes_and_roles: int = 6
) -> tuple[int, int]:
    """Bytes an image of a teacher's stored answer: of its selected queries in float32, of its memory in bfloat16."""
    return queries * (classes + boxes_and_roles) * layers * 4, tokens * channels * 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; measure first where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure the costs of one process here")
    parser.add_argument("--validate", action="store_true", help="two processes here: the model beside the clock")
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of measured costs")
    parser.add_argument("--bandwidth", type=float, help="bytes a second between processes; default: as measured")
    parser.add_argument("--latency", type=float, help="seconds of a message; default: as measured")
    for name, value in asdict(Setting()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help="default: %(default)s")
    given = parser.parse_args(arguments)
    sys.path.insert(0, str(Path(__file__).parent))
    content = json.loads(given.out.read_text()) if given.out.is_file() else {}
    if given.measure or given.validate:
        import scaling_costs

        content |= {"costs": asdict(scaling_costs.costs(given.quick))} if given.measure else {}
        content |= {"two processes": scaling_costs.two_processes(given.quick)} if given.validate else {}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(content, indent=2) + "\n")
    two = content["two processes"]
    network = Network(given.bandwidth or two["bandwidth"], two["latency"] if given.latency is None else given.latency)
    setting = Setting(**{name: getattr(given, name) for name in asdict(Setting())})
    print("\n".join(table(Costs(**content["costs"]), network, setting)))
    if given.validate:
        print("\n".join(compared(two)))


def compared(two: dict[str, float]) -> list[str]:
    """What the model says about two processes beside what they took, in seconds."""
    return [
        f"all-reduce of {two['gradient_bytes'] / 1e6:.0f} MB: model {two['all_reduce_model']:.4f} s, "
        f"measured {two['all_reduce']:.4f} s",
        f"step of two processes: model {two['step_model']:.3f} s, measured {two['step_of_two']:.3f} s; "
        f"alone {two['step_alone']:.3f} s",
    ]


if __name__ == "__main__":
    main()
