"""A teacher for a whole run that is in a cache, not in memory; ``given_teacher.GivenTeacher``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from qskd.data.dataset import DetectionDataset
from qskd.data.index import DetectionIndex
from qskd.data.transforms import ImageSize
from qskd.errors import ConfigError
from qskd.evaluation.kept import KeptDetections
from qskd.labels import LabelMap
from qskd.lessons.cache import DETECTIONS, TeacherCache
from qskd.lessons.cached_teacher import CachedTeacher
from qskd.lessons.facts import TeacherFacts
from qskd.losses.presets import MethodSettings
from qskd.losses.term import Term
from qskd.models.adapter import DetrAdapter
from qskd.runs import building, image_sizes
from qskd.runs.cache_key import data_key, selection_key, teacher_key
from qskd.runs.cache_pixels import thumbnails
from qskd.runs.options import DataOptions, PairOptions
from qskd.runs.training import plain_size


def open_recorded(
    pair: PairOptions, splits: building.Splits, data: DataOptions, settings: MethodSettings, teacher: DetrAdapter | None
) -> "RecordedTeacher":
    """The teacher of ``--teacher_cache``, checked against all that a run depends on but the image sizes.

    Args:
        pair: with ``teacher_cache``.
        splits: the run's data.
        data: its augmentation.
        settings: its method.
        teacher: the model, where it was given too; it must be the one that was cached.

    Raises:
        CheckpointError: there is no finished cache, it is damaged, or was made for something else.
    """
    assert pair.teacher_cache is not None
    needs = settings.needs
    cache = TeacherCache.open(Path(pair.teacher_cache).expanduser(), needs)
    key = teacher_key(teacher) if teacher is not None else _asked_of_teacher(pair)
    key |= data_key(splits, data) | selection_key(settings)
    cache.content.check(cache.folder, key, needs)
    return RecordedTeacher(cache, LabelMap.between(cache.content.teacher.id2label, splits.class_names))


def _asked_of_teacher(pair: PairOptions) -> dict[str, Any]:
    """What options say of a teacher that is not there; a default says nothing."""
    return {} if pair.teacher_box_frame == "content" else {"teacher box frame": pair.teacher_box_frame}


@dataclass(frozen=True, slots=True)
class RecordedTeacher:
    """What a cache knows of its teacher."""

    cache: TeacherCache
    label_map: LabelMap

    @property
    def facts(self) -> TeacherFacts:
        """See ``GivenTeacher``."""
        return self.cache.content.teacher

    @property
    def size(self) -> ImageSize:
        """See ``GivenTeacher``."""
        edges = self.cache.content.key["teacher image size"]
        return ImageSize(square=edges[0]) if len(edges) == 1 else ImageSize(None, *edges)

    def student_size(self, data: DataOptions, pair: PairOptions, student: DetrAdapter) -> ImageSize:
        """The student's image size: the cache's, unless options say otherwise, which must be the same.

        Raises:
            CheckpointError: a size that was asked for is not the cache's.
            ConfigError: the student cannot take it.
        """
        given = self.cache.content.sizes
        if data.image_size is None and data.max_image_size is None:
            data = replace(data, image_size=given["image_size"], max_image_size=given["max_image_size"])
        size = image_sizes.choose_size(data, [student], [None])
        key = {"image size": plain_size(size)}
        own = image_sizes.asked_size(pair.teacher_image_size, pair.teacher_max_image_size, [], "--teacher_")
        if own is not None:
            key["teacher image size"] = plain_size(own)
        self.cache.content.check(self.cache.folder, key, ())
        return size

    def notes(self, *, is_half: bool) -> list[str]:
        """What to tell a user whose run computes in half precision, or does not, where the teacher did otherwise."""
        was_half = self.cache.content.made["bf16"]
        if was_half == is_half:
            return []
        return [
            f"the cached teacher answered in {'bfloat16' if was_half else 'float32'}, unlike one in memory beside this "
            "student"
        ]

    def fingerprint(self) -> str:
        """See ``GivenTeacher``."""
        return str(self.cache.content.key["teacher"])

    def identity(self) -> dict[str, Any]:
        """See ``GivenTeacher``: which augmentations come, and how exactly the teacher's answers were kept."""
        content = self.cache.content
        reading = {"teacher's reading": content.key["teacher's reading"]}
        made = {"cached epochs": self.cache.epochs, "cached seed": content.key["seed"], "cached as": dict(content.made)}
        return reading | made

    def side(self, settings: MethodSettings, terms: Mapping[str, Term], size: ImageSize) -> CachedTeacher:
        """See ``GivenTeacher``."""
        return CachedTeacher(self.cache, self.label_map, terms, own_size=self.size != size)

    def prepare(self, data: DetectionDataset) -> DetectionDataset:
        """Replays the augmentations that the teacher saw; its pixels are not needed once they were compared.

        Raises:
            CheckpointError: images look otherwise than those that it saw.
        """
        data.replay(self.cache.epochs, self.cache.content.key["seed"])
        self.cache.content.check_pixels(self.cache.folder, thumbnails(data))
        data.teacher_transform = None
        return data

    def measured(
        self,
        index: DetectionIndex,
        batch_size: int,
        first: int | None = None,
        *,
        processes: PartialState | None = None,
    ) -> tuple[dict[str, Any], KeptDetections, int]:
        """What was measured when the cache was made, on all images.

        Raises:
            DataError: the detections are damaged.
            ConfigError: they are missing.
        """
        path = self.cache.folder / DETECTIONS
        if not path.is_file():
            raise ConfigError(f"{path} is missing. Make the cache again with `qskd cache`, in another folder.")
        return dict(self.cache.content.measured["metrics"]), KeptDetections.load(path), len(index)

    def cost(self) -> dict[str, Any]:
        """See ``GivenTeacher``."""
        return dict(self.cache.content.measured["cost"])
