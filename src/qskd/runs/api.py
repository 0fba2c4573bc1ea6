"""The commands as Python functions: keywords instead of flags, the same names, the same result."""

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from qskd.runs import caching_teacher, distilling, evaluating, inspecting, predicting, training
from qskd.runs.caching_pass import Cached
from qskd.runs.inspecting import Inspected, InspectOptions
from qskd.runs.options import (
    CacheOptions,
    DataOptions,
    MethodOptions,
    ModelOptions,
    PairOptions,
    SourceOptions,
    TrainOptions,
    no_option,
)
from qskd.runs.predicting import Predicted, PredictOptions
from qskd.runs.training import RunResult
from qskd.trainer import DistillationConfig


def train(**options: Any) -> RunResult:
    """Train one detector plainly, as `qskd train` does.

    Args:
        options: the command's flags without dashes: ``model``, ``data``, ``output_dir``, any field of
            ``DistillationConfig``.

    Raises:
        ConfigError: an option that does not exist.
        QskdError: bad input, found before the first step.

    Example:
        >>> run = qskd.train(model="rt_detr.json", data="scenes", output_dir="runs/teacher")  # doctest: +SKIP
    """
    model, data, config = _split(options, (TrainOptions, DataOptions, DistillationConfig))
    return training.train(model, data, config)


def distill(**options: Any) -> RunResult:
    """Train a student under a teacher, as `qskd distill` does.

    Args:
        options: the command's flags without dashes: ``teacher``, ``student`` or ``student_backbone`` and the like,
            ``data``, ``output_dir``, ``method``, any field of ``DistillationConfig``.

    Raises:
        ConfigError: an option that does not exist.
        QskdError: bad input, found before the first step.
    """
    pair, data, method, config = _split(options, (PairOptions, DataOptions, MethodOptions, DistillationConfig))
    return distilling.distill(pair, data, method, config)


def cache_teacher(**options: Any) -> Cached:
    """Run a teacher once over the training data and keep its answers, as `qskd cache` does.

    Args:
        options: the command's flags without dashes: ``teacher``, ``data``, ``output_dir``, ``epochs``, ``cache_dtype``,
            ``image_size``, ``method`` and its options.

    Returns:
        What was kept, and where; give the folder to ``distill`` as ``teacher_cache``.

    Raises:
        ConfigError: options that cannot be, or a disk with too little room.
        CheckpointError: the folder holds a cache of something else.
        QskdError: bad input.

    Example:
        >>> kept = qskd.cache_teacher(teacher="runs/teacher/best", data="scenes", output_dir="said")  # doctest: +SKIP
        >>> qskd.distill(teacher_cache="said", student="s.json", data="scenes", output_dir="run")  # doctest: +SKIP
    """
    return caching_teacher.cache_teacher(*_split(options, (CacheOptions, DataOptions, MethodOptions)))


def evaluate(split: str = "val", batch_size: int = 8, **options: Any) -> dict[str, Any]:
    """COCO metrics of a model on a split, as `qskd eval` does: a dictionary with AP, AP50, ..., ``per_class``."""
    model, data = _split(options, (ModelOptions, SourceOptions))
    return evaluating.evaluate(model, data, split=split, batch_size=batch_size)


def inspect(**options: Any) -> Inspected:
    """A teacher's queries drawn and counted, as `qskd inspect` does.

    Args:
        options: the command's flags without dashes: ``teacher``, ``student``, ``data`` or ``image``, ``output_dir``,
            ``method`` and its options.

    Returns:
        The numbers, and where the page is.

    Raises:
        ConfigError: options that cannot be.
        QskdError: bad input.
    """
    kinds = (InspectOptions, PairOptions, SourceOptions, MethodOptions)
    return inspecting.inspect(*_split(options, kinds))


def predict(
    model: str | os.PathLike[str], inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], **options: Any
) -> Predicted:
    """Boxes on images and videos, drawn and as COCO results, as `qskd predict` makes them.

    Args:
        model: hub id, folder, or the folder of a run.
        inputs: images, videos, folders of them; one or several.
        options: the command's flags without dashes: ``output_dir``, ``threshold``, ``top``, ``classes``,
            ``batch_size``, ``image_size``, ``max_image_size``, ``box_frame``, ``device``, ``pictures``,
            ``trust_remote_code``.

    Raises:
        ConfigError: options that cannot be, or nothing to look at.
        QskdError: no usable model. A file that cannot be read is no error, but among the result's ``failures``.

    Example:
        >>> found = qskd.predict("runs/qskd", "photos", threshold=0.5)  # doctest: +SKIP
    """
    (settings,) = _split(options, (PredictOptions,))
    given = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    return predicting.predict(os.fspath(model), [Path(one) for one in given], settings)


def _split(options: dict[str, Any], kinds: Sequence[type]) -> list[Any]:
    """Every option to the dataclass that has it."""
    known = {entry.name: kind for kind in reversed(kinds) for entry in fields(kind) if entry.init}
    for name in options:
        if name not in known:
            raise no_option(name, known)
    given = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}
    return [kind(**{name: value for name, value in given.items() if known[name] is kind}) for kind in kinds]
