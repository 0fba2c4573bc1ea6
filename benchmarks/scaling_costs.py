"""The constants of ``scaling.py``, measured: what an image costs one process, and what two processes take."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import training_and_evaluation as work
from criterion import criterion_of, random_step
from scaling import Costs, Network
from timing import interleaved, seconds
from torch import nn
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

from qskd.data.batch import Batch, Targets
from qskd.distiller import Distiller
from qskd.evaluation.coco_map import CocoEvaluator
from qskd.labels import LabelMap
from qskd.losses.presets import build_terms, resolve
from qskd.models.adapter import DetrAdapter
from qskd.models.families import adapter_class
from qskd.models.loading import as_teacher
from qskd.teacher import TeacherSide

_CLASSES = 80
_RESNET_18 = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}


def costs(quick: bool) -> Costs:
    """Of RT-DETR-R50 as teacher and RT-DETR-R18 of 3 layers as student, on one thread, in processor seconds."""
    torch.set_num_threads(1)
    side, images = (128, 1) if quick else (640, 2)
    teacher, distiller = pair(quick)
    batch = random_batch(images, side)
    totals = distiller.totals([batch], [None])

    def learn() -> None:
        distiller(batch, totals)["loss"].backward()

    taught, learnt = interleaved([lambda: teacher.teach(batch), learn], 1 if quick else 3, time.process_time)
    compare = criterion_of(random_step(8, 1600, 7))
    (compared,) = interleaved([compare], 1 if quick else 5, time.process_time)
    return Costs(
        decode=1 / work.data_loading(quick),
        teacher=taught / images,
        student=learnt / images,
        criterion=compared / 8,
        coco=_coco(200 if quick else 1000),
        gradient_bytes=gradient_bytes(distiller),
        image_side=side,
    )


def pair(quick: bool) -> tuple[TeacherSide, Distiller]:
    """A teacher and the module that learns from it, with random weights."""
    torch.manual_seed(0)
    teacher = _detector({"num_queries": 30} if quick else {})
    small = RTDetrResNetConfig(**_RESNET_18, out_features=["stage2", "stage3", "stage4"])
    shape = {"backbone_config": small, "encoder_in_channels": [128, 256, 512], "decoder_layers": 3}
    student = _detector(shape | ({"num_queries": 30} if quick else {}))
    settings = resolve("qskd")
    built = build_terms(settings, student=student, teacher=teacher)
    terms = {name: term for name, (term, _) in built.items()}
    weights = {name: weight for name, (_, weight) in built.items()}
    names = [teacher.id2label[index] for index in range(_CLASSES)]
    side = TeacherSide(as_teacher(teacher), LabelMap.between(teacher.id2label, names), settings.selection, terms)
    return side, Distiller(student, None, terms, weights)


def _detector(changes: dict[str, object]) -> DetrAdapter:
    return adapter_class("rt_detr")(RTDetrForObjectDetection(RTDetrConfig(num_labels=_CLASSES, **changes)))


def random_batch(images: int, side: int) -> Batch:
    """Noise with 7 objects an image."""
    random = torch.Generator().manual_seed(0)
    targets = Targets.from_lists(
        [torch.randint(_CLASSES, (7,), generator=random) for _ in range(images)],
        [torch.rand(7, 4, generator=random) * 0.4 + 0.2 for _ in range(images)],
    )
    pixels = torch.rand(images, 3, side, side, generator=random)
    return Batch(pixels, torch.full((images, 2), side), targets, tuple(range(images)), ((side, side),) * images)


def gradient_bytes(module: nn.Module) -> int:
    """What an all-reduce of all gradients moves."""
    return sum(one.numel() * one.element_size() for one in module.parameters() if one.requires_grad)


def _coco(images: int) -> float:
    truth, found = work._scenes(images)
    evaluator = CocoEvaluator(truth, list(range(1, _CLASSES + 1)))
    evaluator.add([image["id"] for image in truth["images"]], found)
    evaluator.result()
    return seconds(evaluator.result, time.process_time) / images


def two_processes(quick: bool) -> dict[str, float]:
    """Step and all-reduce of two processes here (gloo), and what the model says from smaller messages."""
    alone = _launched(1, quick)
    both = _launched(2, quick)
    # From an empty message and one of a quarter of the gradients; the whole is then predicted.
    latency = both["empty"] / 2
    size = alone["gradient_bytes"]
    network = Network(bandwidth=size / 4 / max(both["quarter"] - both["empty"], 1e-9), latency=latency)
    reduced = network.all_reduce(2, int(size))
    return {
        "bandwidth": network.bandwidth,
        "latency": network.latency,
        "gradient_bytes": size,
        "all_reduce_model": reduced,
        "all_reduce": both["whole"],
        "step_alone": alone["step"],
        "step_model": alone["step"] + reduced,
        "step_of_two": both["step"],
    }


def _launched(processes: int, quick: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        subprocess.run([*command, __file__, str(out), str(int(quick))], env=environment, check=True)
        return json.loads(out.read_text())


def _worker(out: Path, quick: bool) -> None:
    """One of the processes that ``_launched`` starts; the first one writes the medians."""
    torch.distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    teacher, distiller = pair(quick)
    batch = random_batch(1, 128 if quick else 384)
    wrapped = nn.parallel.DistributedDataParallel(distiller, find_unused_parameters=True)

    def step() -> None:
        teaching = teacher.teach(batch)
        wrapped(batch, distiller.totals([batch], [teaching]), teaching)["loss"].backward()

    size = gradient_bytes(distiller)
    found: dict[str, float] = {"gradient_bytes": size, "step": _clocked(step, 2 if quick else 7)}
    for name, length in (("empty", 1), ("quarter", size // 16), ("whole", size // 4)):
        message = torch.zeros(length)
        found[name] = _clocked(lambda message=message: torch.distributed.all_reduce(message), 3 if quick else 15)
    if torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def _clocked(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of the clock, of processes that begin together."""
    run()
    times = []
    for _ in range(repeats):
        torch.distributed.barrier()
        times.append(seconds(run))
    return median(times)


if __name__ == "__main__":
    _worker(Path(sys.argv[1]), sys.argv[2] == "1")
