"""What a teacher's lessons depend on, in plain values that a cache is compared by."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from qskd.data.index import DetectionIndex
from qskd.data.transforms import ImageSize
from qskd.losses.presets import MethodSettings, options_of
from qskd.models.adapter import DetrAdapter
from qskd.models.fingerprints import configuration_fingerprint, weights_fingerprint
from qskd.runs import building, image_sizes
from qskd.runs.options import CacheOptions, DataOptions


def teacher_key(teacher: DetrAdapter) -> dict[str, Any]:
    """What a lesson depends on of the teacher: weights, and how they are read."""
    norm = teacher.pixel_norm
    return {
        "teacher": weights_fingerprint(teacher.model),
        "teacher's reading": [configuration_fingerprint(teacher.model)[:12], [*norm.mean], [*norm.std]],
        "teacher box frame": teacher.box_frame,
    }


def data_key(splits: building.Splits, data: DataOptions) -> dict[str, Any]:
    """What it depends on of the data and of its augmentation; validation data makes no lesson, but the teacher's AP."""
    measured = {} if splits.val is None else {"validation data": splits.val.fingerprint()}
    return measured | {
        "classes": list(splits.class_names),
        "training data": splits.train.fingerprint(),
        "training images": images_key(splits.train),
        **{name: float(getattr(data, name)) for name in ("flip", "crop", "zoom_out", "photometric")},
    }


def images_key(index: DetectionIndex) -> str:
    """SHA-256 over the images' sides and their encoded bytes' numbers: a copy is the same, other images rarely are."""
    digest = hashlib.sha256(np.ascontiguousarray(index.images.sizes).tobytes())
    encoded = [record.path.stat().st_size if record.blob is None else len(record.blob()) for record in index.images]
    digest.update(np.array(encoded, dtype=np.int64).tobytes())
    return digest.hexdigest()


def selection_key(settings: MethodSettings) -> dict[str, Any]:
    """What it depends on of the method: which queries are kept; weights and the like are free."""
    return {name: value for name, value in options_of(settings).items() if name.startswith("selection.")}


def cached_sizes(options: CacheOptions, data: DataOptions, teacher: DetrAdapter) -> tuple[ImageSize, ImageSize]:
    """The sizes of the student's and of the teacher's images: the same, unless the teacher was given its own."""
    if options.teacher_image_size is None and options.teacher_max_image_size is None:
        size = image_sizes.choose_size(data, [teacher], [options.teacher])
        return size, size
    own = replace(data, image_size=options.teacher_image_size, max_image_size=options.teacher_max_image_size)
    student_size = image_sizes.choose_size(data, [], [options.teacher])
    return student_size, image_sizes.choose_size(own, [teacher], [options.teacher])


def sizes_as_options(size: ImageSize, teacher_size: ImageSize) -> dict[str, int | None]:
    """Sizes as the options that ask for them."""
    found: dict[str, int | None] = {}
    for prefix, one in (("", size), ("teacher_", teacher_size)):
        edge, longest = (one.square, None) if one.square is not None else (one.shortest_edge, one.longest_edge)
        found |= {f"{prefix}image_size": edge, f"{prefix}max_image_size": longest}
    return found
