"""Checks before the first epoch: is the teacher good, do the labels meet, is every loss term alive?

Everything is measured on the real teacher, student and data, and nothing of it stays: weights, buffers and random
states are as before.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qskd.data.batch import Batch, collate
from qskd.data.dataset import DetectionDataset
from qskd.distiller import Distiller, StepTotals
from qskd.errors import PreflightError
from qskd.evaluation.kept import KeptDetections
from qskd.labels import LabelMap
from qskd.models.adapter import Need
from qskd.reporting.tables import duration, percent
from qskd.runs.building import evenly
from qskd.teacher import Teacher, Teaching, Unlabeled

TEACHER_IMAGES = 200
"""Validation images on which the teacher is measured."""

WORST_AP50 = 0.05
"""Below this AP50 a teacher is not clearly better than nothing; an untrained one stays below 0.01."""


@dataclass(frozen=True, slots=True)
class TermCheck:
    """One loss part on one batch, before training."""

    name: str
    value: float
    gradient_norm: float  # of the whole student


@dataclass(slots=True)
class Preflight:
    """What was found; printed, and saved as preflight.json."""

    label_map: LabelMap
    teacher_metrics: dict[str, Any]
    teacher_images: int
    terms: list[TermCheck] = field(default_factory=list)
    seconds_per_step: float = 0.0
    total_steps: int = 0
    peak_memory_gib: float = 0.0
    warnings: list[str] = field(default_factory=list)
    teacher_found: KeptDetections | None = None  # the teacher's detections on these images

    def as_dict(self) -> dict[str, Any]:
        """Plain values for preflight.json."""
        return {
            "label_map": self.label_map.as_dict(),
            "teacher": {"images": self.teacher_images, **self.teacher_metrics},
            "terms": [asdict(term) for term in self.terms],
            "seconds_per_step": self.seconds_per_step,
            "estimated_seconds": self.seconds_per_step * self.total_steps,
            "peak_memory_gib": self.peak_memory_gib if _is_finite(self.peak_memory_gib) else None,
            "warnings": self.warnings,
        }

    def lines(self) -> list[str]:
        """The report for the console."""
        width = max((len(term.name) for term in self.terms), default=4)
        terms = [
            f"  {term.name.ljust(width)}  {term.value:10.4g}  gradient {term.gradient_norm:10.4g}"
            for term in self.terms
        ]
        known = sum(self.label_map.known)
        return [
            "preflight",
            f"  labels: the teacher knows {known} of {len(self.label_map.known)} classes",
            f"  teacher: AP {percent(self.teacher_metrics.get('AP'))}, AP50 "
            f"{percent(self.teacher_metrics.get('AP50'))} on {self.teacher_images} validation images",
            *terms,
            f"  time: about {duration(self.seconds_per_step * self.total_steps)} for {self.total_steps} steps "
            f"({self.seconds_per_step:.2f} s each), peak memory {self.peak_memory_gib:.1f} GiB",
            *(f"  warning: {warning}" for warning in self.warnings),
        ]


def check_teacher(metrics: dict[str, Any], images: int) -> None:
    """Refuse a teacher that knows nothing of the data.

    Raises:
        PreflightError: AP50 on the sample is below ``WORST_AP50``.
    """
    ap50 = metrics.get("AP50") or 0.0
    if ap50 < WORST_AP50:
        raise PreflightError(
            f"The teacher finds next to nothing: AP50 {100 * ap50:.1f} on {images} validation images. Distilling it "
            "would teach noise. Check that it was trained on these classes, that its normalisation "
            "(preprocessor_config.json) and image size are right (--teacher_image_size gives it its own), and "
            "--teacher_box_frame if images are padded. Train it first with "
            "`qskd train`, or pass --no-preflight if you know better."
        )


def check_terms(
    distiller: Distiller,
    teacher: Teacher | None,
    batch: Batch,
    *,
    same_weights: bool,
    begins_alike: bool = False,
    autocast: Callable[[], Any],
) -> list[TermCheck]:
    """Every loss part on one batch: finite, not zero, and with gradient on the student.

    Zero is allowed where student and teacher have the same weights, and of features where the student began with the
    teacher's: its encoder may be the teacher's whole.

    Raises:
        PreflightError: naming the part and what it was.
    """
    with _untouched(distiller), autocast():
        teaching = None if teacher is None else teacher.teach(batch)
        totals = distiller.totals([batch], [teaching])
        checks = []
        if distiller.detection_weight:
            checks.append(TermCheck("detection", *_value_and_gradient(distiller, batch, totals, None, None)))
        for name in distiller.terms:
            checks.append(TermCheck(name, *_value_and_gradient(distiller, batch, totals, teaching, name)))
    of_memory = [name for name, term in distiller.terms.items() if Need.MEMORY in term.needs]
    for check in checks:
        _judge(check, same_weights or (begins_alike and check.name in of_memory))
    return checks


def _value_and_gradient(
    distiller: Distiller, batch: Batch, totals: StepTotals, teaching: Teaching | None, only: str | None
) -> tuple[float, float]:
    """Value of one term (or of the detection loss) and the norm of its gradient on the student."""
    loss = distiller.one_term(batch, totals, teaching, only) if only and teaching else distiller(batch, totals)["loss"]
    parameters = [parameter for parameter in distiller.student.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    norm = torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
    return float(loss.detach()), float(norm)


def _judge(check: TermCheck, may_be_zero: bool) -> None:
    if not (_is_finite(check.value) and _is_finite(check.gradient_norm)):
        raise PreflightError(
            f"'{check.name}' is {check.value} with gradient norm {check.gradient_norm} before the first step. Check "
            "the weights of teacher and student, and try float32."
        )
    if not may_be_zero and (check.value == 0.0 or check.gradient_norm == 0.0):
        raise PreflightError(
            f"'{check.name}' is {check.value} with gradient norm {check.gradient_norm}: it would teach the student "
            "nothing. Check its weight and options, and that the sample of images holds objects the teacher knows."
        )


def sample_batch(dataset: DetectionDataset, size: int, known: Sequence[bool]) -> Batch:
    """A training batch of images, evenly spread, that hold objects of classes the teacher knows.

    Raises:
        PreflightError: there is no such image.
    """
    taught = np.flatnonzero(known)
    labels = (dataset.index.labels(position) for position in range(len(dataset)))
    filled = [position for position, found in enumerate(labels) if np.isin(found, taught).any()]
    if not filled:
        raise PreflightError(
            "No training image holds an object of a class that the teacher knows: there is nothing to learn from it."
        )
    return collate([dataset[position] for position in evenly(filled, size)])


def time_step(
    distiller: Distiller,
    teacher: Teacher | None,
    batch: Batch,
    autocast: Callable[[], Any],
    unlabeled: Callable[[], Unlabeled] | None = None,
) -> float:
    """Seconds of one training step without optimiser, the second of two.

    Args:
        distiller: the student with its terms.
        teacher: None for a step that asks it nothing.
        batch: images with objects.
        autocast: makes the context of a step.
        unlabeled: gives images without annotations, as the teacher labels them, that are part of every step.
    """
    seconds = 0.0
    with _untouched(distiller), autocast():
        for _ in range(2):
            started = time.perf_counter()
            teaching = teacher.teach(batch) if teacher else None
            more = unlabeled() if unlabeled else None
            learnt = [batch, *([more.detected] if more and more.detected else [])]
            totals = distiller.totals(learnt, [teaching, *([more.teaching] if more else [])])
            loss = distiller(batch, totals, teaching, unlabeled=more)["loss"]
            loss.backward()
            seconds = _synchronised(loss) - started
    return seconds


def peak_memory_gib() -> float:
    """Peak memory of the device where there is one, else of this process, in GiB; NaN where nobody counts it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform == "win32":
        return float("nan")
    import resource  # not on Windows

    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _synchronised(tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Train mode inside; weights, buffers, gradients and random states as before afterwards."""
    saved = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    was_training = module.training
    places = sorted({tensor.device.index for tensor in saved.values() if tensor.is_cuda})
    with torch.random.fork_rng(devices=places):
        try:
            module.train()
            yield
        finally:
            module.load_state_dict(saved)
            module.zero_grad(set_to_none=True)
            module.train(was_training)


def _is_finite(value: float) -> bool:
    return value - value == 0.0
