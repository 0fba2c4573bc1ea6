"""Peak memory of a distillation step and of an evaluation, against what they need by themselves."""

import subprocess
import sys
from pathlib import Path

import training_and_evaluation as work
from memory import peak_bytes
from scaling_costs import pair, random_batch
from torch import nn

from qskd.evaluation.coco_map import CocoEvaluator


def distillation_step(quick: bool) -> float:
    """Peak of a whole step, over the teacher's weights and the peak of the student's plain step.

    RT-DETR-R50 and RT-DETR-R18 with random weights, 2 images of 256 px. The weights of both count on both sides.
    """
    teacher, distiller = pair(quick)
    batch = random_batch(1 if quick else 2, 64 if quick else 256)
    totals = distiller.totals([batch], [None])

    def distill() -> None:
        teaching = teacher.teach(batch)
        distiller(batch, distiller.totals([batch], [teaching]), teaching)["loss"].backward()
        distiller.zero_grad()

    def plain() -> None:
        distiller(batch, totals)["loss"].backward()
        distiller.zero_grad()

    weights = _bytes_of(teacher.adapter.model) + _bytes_of(distiller)
    return (weights + peak_bytes(distill)) / (weights + peak_bytes(plain))


def _bytes_of(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def evaluation(quick: bool) -> float:
    """MB that a process grows by at its peak, evaluating 5000 images (quick: 100) of 100 detections; on Linux."""
    command = [sys.executable, __file__, str(100 if quick else 5000)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _evaluate(images: int) -> float:
    truth, found = work._scenes(images)
    few, of_few = work._scenes(5)
    first = CocoEvaluator(few, list(range(1, 81)))
    first.add([image["id"] for image in few["images"]], of_few)
    first.result()  # loads the libraries
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, at what is in use now
    before = _peak_mb()
    evaluator = CocoEvaluator(truth, list(range(1, 81)))
    evaluator.add([image["id"] for image in truth["images"]], found)
    evaluator.result()
    return _peak_mb() - before


def _peak_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    print(_evaluate(int(sys.argv[1])))
