"""What a distillation asks of its teacher as a whole run, and the teacher in memory that answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from accelerate import PartialState

from qskd.data.dataset import DetectionDataset
from qskd.data.index import DetectionIndex
from qskd.data.transforms import ImageSize
from qskd.evaluation.kept import KeptDetections
from qskd.labels import LabelMap
from qskd.lessons.facts import TeacherFacts
from qskd.losses.presets import DetrFacts, MethodSettings
from qskd.losses.term import Term
from qskd.models.adapter import DetrAdapter
from qskd.models.compiling import Compiling
from qskd.models.fingerprints import reading_of, weights_fingerprint
from qskd.models.folding import inference_engine
from qskd.runs.evaluating import evaluate_keeping
from qskd.runs.training import measured_cost, one_image
from qskd.teacher import Teacher, TeacherSide


class GivenTeacher(Protocol):
    """A teacher for a whole run: in memory, or in a cache."""

    @property
    def facts(self) -> DetrFacts:
        """What terms have to know of it."""

    @property
    def label_map(self) -> LabelMap:
        """From the student's classes to the teacher's."""

    @property
    def size(self) -> ImageSize:
        """What its images are resized to."""

    def fingerprint(self) -> str:
        """Of its weights."""

    def identity(self) -> dict[str, Any]:
        """What else a resumed run must share with the one that was interrupted."""

    def side(self, settings: MethodSettings, terms: Mapping[str, Term], size: ImageSize) -> Teacher:
        """What gives the lessons to a student that sees images of this size."""

    def prepare(self, data: DetectionDataset) -> DetectionDataset:
        """The training data, as it must be for this teacher."""

    def measured(
        self,
        index: DetectionIndex,
        batch_size: int,
        first: int | None = None,
        *,
        processes: PartialState | None = None,
    ) -> tuple[dict[str, Any], KeptDetections, int]:
        """Metrics and detections on so many of the images, and on how many they are."""

    def cost(self) -> dict[str, Any]:
        """Parameters, GFLOPs and latency."""


@dataclass(slots=True)
class LoadedTeacher:
    """A teacher in memory, asked at every step.

    What answers is a faster copy (``inference_engine``) of the model that was given; fingerprint and cost are those of
    the model itself, which is let go of once its cost is known and the copy is made.

    Args:
        plain: the model that was given, on the CPU; nobody else need keep it.
        label_map: from the student's classes to the teacher's.
        size: what its images are resized to.
        device: of the run.
        precision: see ``TeacherSide``.
        compiling: how the backbone of what answers is compiled, if it is.
    """

    plain: DetrAdapter | None
    label_map: LabelMap
    size: ImageSize
    device: torch.device
    precision: Literal["float32", "bfloat16"] | None = None
    compiling: Compiling | None = None
    facts: TeacherFacts = field(init=False)
    _fingerprint: str = field(init=False)
    _reading: list[Any] = field(init=False)
    _cost: dict[str, Any] | None = field(default=None, init=False)
    _engine: DetrAdapter | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Note what is asked of the model itself."""
        assert self.plain is not None
        self.facts = TeacherFacts.of(self.plain)
        self._fingerprint = weights_fingerprint(self.plain.model)
        self._reading = reading_of(self.plain)

    def engine(self) -> DetrAdapter:
        """The copy that answers, on the run's device.

        Made on the CPU: a GPU need not hold both, and its convolutions may round float32 to 10 bits (TF32), which would
        blur whether both say the same.
        """
        if self._engine is None:
            assert self.plain is not None
            self._engine = inference_engine(self.plain, one_image(self.size))
            self._engine.model.to(self.device)
            if self.compiling is not None:
                self.compiling.backbone(self._engine, self.device)
            self._let_go()
        return self._engine

    def _let_go(self) -> None:
        if self._engine is not None and self._cost is not None:
            self.plain = None

    def fingerprint(self) -> str:
        """See ``GivenTeacher``."""
        return self._fingerprint

    def identity(self) -> dict[str, Any]:
        """See ``GivenTeacher``."""
        # No epochs, so that no run that began with a cache goes on without it.
        cached = {"cached epochs": None}
        return {**cached, "teacher precision": self.precision, "teacher's reading": self._reading}

    def side(self, settings: MethodSettings, terms: Mapping[str, Term], size: ImageSize) -> TeacherSide:
        """See ``GivenTeacher``."""
        return TeacherSide(self.engine(), self.label_map, settings.selection, terms, self.precision)

    def prepare(self, data: DetectionDataset) -> DetectionDataset:
        """See ``GivenTeacher``."""
        return data

    def measured(
        self,
        index: DetectionIndex,
        batch_size: int,
        first: int | None = None,
        *,
        processes: PartialState | None = None,
    ) -> tuple[dict[str, Any], KeptDetections, int]:
        """See ``GivenTeacher``."""
        images = len(index) if first is None else min(first, len(index))
        metrics, found = evaluate_keeping(
            self.engine(),
            index,
            self.size,
            batch_size,
            first=None if first is None else images,
            processes=processes,
        )
        return metrics, found, images

    def cost(self) -> dict[str, Any]:
        """See ``GivenTeacher``; of the model that was given, measured as its students are: no norm folded.

        Best asked before the first answer, so that the device need not hold the engine and the model.
        """
        if self._cost is None:
            assert self.plain is not None
            self.plain.model.to(self.device)
            self._cost = measured_cost(self.plain, self.size)
            self.plain.model.to("cpu")
            self._let_go()
        return self._cost
