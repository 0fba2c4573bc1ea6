"""Which student for a teacher? Smaller shapes of its own family, counted, and published checkpoints; `qskd models`."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from qskd.data.batch import Batch, Targets
from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError, ConfigError
from qskd.evaluation.cost import count_parameters, gflops
from qskd.models.adapter import DetrAdapter
from qskd.models.backbones import smaller_backbones
from qskd.models.deriving import same_blocks
from qskd.models.families import adapter_class
from qskd.models.known import KnownCheckpoint, known_checkpoints
from qskd.models.loading import as_config, build, read_config
from qskd.models.shaping import StudentShape, student_config
from qskd.runs.image_sizes import choose_size
from qskd.runs.options import SourceOptions

_SMALLER = 0.95  # of the teacher's operations: a student that costs more is none
_LARGEST = 0.8  # of the teacher's parameters, for a published checkpoint


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a detector is, before any weight of it is read."""

    family: str
    parameters: int
    gflops: float  # 1e9 operations on one image of ``image_size``, a multiply-add being two
    image_size: tuple[int, int]  # (height, width), pixels
    strides: tuple[int, ...]  # pixels per memory cell, per level


@dataclass(frozen=True, slots=True)
class Derived:
    """A student derived from the teacher."""

    flags: str  # of `qskd distill`
    facts: ModelFacts
    backbone: Literal["whole", "part", "random"]  # how much of its backbone begins with the teacher's weights


@dataclass(frozen=True, slots=True)
class Suggestions:
    """Students for a teacher."""

    teacher: str
    family: str
    facts: ModelFacts | None  # None where the model cannot be built here
    reason: str  # why it cannot; empty where it can
    derived: tuple[Derived, ...]  # from many to few operations; none where the model cannot be built here
    checkpoints: tuple[KnownCheckpoint, ...]  # smaller, with a stride in common; the teacher's family first

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def suggest(teacher: str) -> Suggestions:
    """Students for a teacher. No weight is read: a configuration is enough.

    Args:
        teacher: a hub id, a folder, or a configuration (``.json``). A published checkpoint that cannot be built here
            (no network, timm not installed) is answered from the published table alone.

    Raises:
        CheckpointError: nothing of that name is at hand or published.
        ConfigError: a configuration of which no model can be built.
        UnsupportedFamily: no adapter reads this kind of model.
    """
    row = next((row for row in known_checkpoints() if row.hub_id == teacher), None)
    try:
        config = as_config(teacher) if teacher.endswith(".json") else read_config(teacher)
        adapter = _of_that_shape(config)
    except (CheckpointError, ConfigError) as error:
        if row is None:
            raise
        published = _published(row.family, row.strides, row.parameters, row.ap)
        return Suggestions(teacher, row.family, None, str(error), (), tuple(published))
    size = choose_size(SourceOptions(), [adapter], [teacher])
    facts = _facts(adapter, size)
    published = _published(adapter.family, facts.strides, facts.parameters / 1e6, row.ap if row else None)
    return Suggestions(teacher, adapter.family, facts, "", tuple(_derived(adapter, facts, size)), tuple(published))


def _of_that_shape(config: Any) -> DetrAdapter:
    """A model with random weights."""
    family = adapter_class(config.model_type)
    with torch.random.fork_rng(devices=[]):
        return family(build(config))


def _facts(adapter: DetrAdapter, size: ImageSize) -> ModelFacts:
    height, width = size.of(480, 640)
    targets = Targets.from_lists([torch.zeros(0, dtype=torch.long)], [torch.zeros(0, 4)])
    pixels, content = torch.zeros(1, 3, height, width), torch.tensor([[height, width]])
    batch = Batch(pixels, content, targets, (0,), ((height, width),))
    operations = gflops(adapter, batch)
    return ModelFacts(adapter.family, count_parameters(adapter.model), operations, (height, width), adapter.strides)


def _derived(teacher: DetrAdapter, facts: ModelFacts, size: ImageSize) -> list[Derived]:
    """Shapes with fewer operations than the teacher, from many to few."""
    found = []
    theirs: Any = teacher.model.config
    for shape in _shapes(teacher):
        with contextlib.suppress(ConfigError):  # a width that does not fit the heads, say
            config = student_config(teacher, shape, list(teacher.id2label.values()))
            student = _facts(_of_that_shape(config), size)
            if student.gflops < _SMALLER * facts.gflops:
                kin = same_blocks(config.backbone_config, theirs.backbone_config)
                found.append(
                    Derived(
                        _flags(shape), student, "whole" if not shape.changes_backbone else "part" if kin else "random"
                    )
                )
    return sorted(found, key=lambda one: -one.facts.gflops)


def _shapes(teacher: DetrAdapter) -> Iterator[StudentShape]:
    """Fewer decoder layers or queries; smaller backbones; the smallest with half the layers, and half the width."""
    config: Any = teacher.model.config
    layers = max(config.decoder_layers // 2, 2)
    fewer = layers if layers < config.decoder_layers else None
    backbones = smaller_backbones(config)
    if fewer:
        yield StudentShape(decoder_layers=fewer)
    for name in backbones[:2]:
        yield StudentShape(backbone=name)
    if backbones:
        yield StudentShape(backbone=backbones[-1], decoder_layers=fewer)
        width = config.d_model if hasattr(config, "d_model") else config.hidden_size
        yield StudentShape(backbone=backbones[-1], decoder_layers=fewer, hidden_size=width // 2)
    elif fewer:
        yield StudentShape(decoder_layers=fewer, num_queries=max(teacher.num_queries // 3, 1))


def _flags(shape: StudentShape) -> str:
    values = {name: value for name, value in asdict(shape).items() if value is not None}
    return " ".join(f"--student_{name} {value}" for name, value in values.items())


def _published(
    family: str, strides: tuple[int, ...], millions: float | None, ap: float | None
) -> list[KnownCheckpoint]:
    """Checkpoints with a level of memory to compare that are smaller, and worse where the teacher's AP is known.

    The teacher's family comes first, and the better ones.
    """
    rows = [
        row
        for row in known_checkpoints()
        if row.ap is not None
        and (ap is None or row.ap < ap)
        and row.parameters is not None
        and (millions is None or row.parameters <= _LARGEST * millions)
        and set(row.strides) & set(strides)
    ]
    return sorted(rows, key=lambda row: (row.family != family, -(row.ap or 0.0)))
