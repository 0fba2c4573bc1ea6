"""What a teacher's queries see, drawn and counted before anything is trained; `qskd inspect`."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import set_seed

from qskd.data.index import DetectionIndex
from qskd.data.transforms import ImageSize
from qskd.errors import ConfigError
from qskd.files import make_folder
from qskd.labels import LabelMap
from qskd.losses.attention_guided_feature import AttentionGuidedFeature
from qskd.losses.local_alignment_prediction import LocalAlignmentPrediction
from qskd.losses.presets import AgfdSettings, LapdSettings, MethodSettings, build_terms, options_of
from qskd.models.adapter import DetrAdapter
from qskd.models.loading import as_teacher
from qskd.reporting.inspection import InspectionFiles, Subject, write_inspection
from qskd.runs import building, image_sizes
from qskd.runs.inspected_images import InspectedImages, LabelledImages, UnlabelledImages, image_files, own_classes
from qskd.runs.inspected_scenes import Apprentice, SceneReader
from qskd.runs.options import MethodOptions, PairOptions, SourceOptions
from qskd.runs.starting import make_student
from qskd.selection.foreground import Foreground
from qskd.selection.statistics import Numbers, QueryStatistics
from qskd.teacher import TeacherSide

_DATA = ("data", "train_annotations", "train_images", "val_annotations", "val_images")
_SEED = 0  # of the random weights of a student that has none


@dataclass
class InspectOptions:
    """What to look at."""

    image: list[str] | None = field(
        default=None,
        metadata={"help": "Image files without labels, instead of --data; the teacher's detections are the objects."},
    )
    output_dir: str = field(default="inspection", metadata={"help": "Where the page and its files go."})
    images: int = field(default=6, metadata={"help": "Images to draw, evenly spread over those with objects."})
    split: str = field(default="val", metadata={"help": "Which split of --data: val, test, train."})
    statistics_images: int = field(
        default=200, metadata={"help": "Images to count over, evenly spread; 0 for all of the split."}
    )
    threshold: float = field(
        default=0.5, metadata={"help": "With --image: the least score of a detection that counts as an object."}
    )
    batch_size: int = field(default=4, metadata={"help": "Images at a time, where they are counted."})

    def check(self) -> None:
        """Refuse values that cannot be.

        Raises:
            ConfigError: one of them cannot.
        """
        for name, least in (("images", 0), ("statistics_images", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} is {getattr(self, name)}; give at least {least}.")
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"--threshold is {self.threshold}; a score is in [0, 1].")


@dataclass(frozen=True, slots=True)
class Inspected:
    """What was found and where it was written."""

    numbers: Numbers
    files: InspectionFiles


def inspect(options: InspectOptions, pair: PairOptions, data: SourceOptions, method: MethodOptions) -> Inspected:
    """Write inspect.html, inspect.json and pictures about a teacher's queries.

    Raises:
        QskdError: options that cannot be, or a model, data or an image that cannot be used.
    """
    if pair.teacher is None:
        raise building.missing_option("--teacher", "a hub id or the folder of a trained detector")
    options.check()
    settings = method.settings()
    source = _source(options, data)
    sitters = _Sitters.open(pair, source)
    sizes = sitters.sizes(data, pair)
    make_folder(Path(options.output_dir), "--output_dir")
    images: InspectedImages
    if isinstance(source, DetectionIndex):
        images = LabelledImages.of(source, *sizes)
    else:
        images = UnlabelledImages(source, sizes, sitters.teacher, options.threshold)
    side = TeacherSide(sitters.teacher, sitters.label_map, settings.selection, {})
    reader = SceneReader(side, images, _agfd(settings, sitters.teacher), _apprentice(settings, sitters))
    scenes = [reader.read(position) for position in images.chosen(options.images)]
    numbers = count(side, images, options)
    subject = Subject(
        pair.teacher,
        sitters.teacher.family,
        None if sitters.student is None else f"{pair.student or 'derived from it'} ({sitters.student.family})",
        isinstance(source, DetectionIndex),
        method.method,
        settings.selection.threshold if settings.selection.select == "groups" else None,
        settings.selection.most_per_object,
        options_of(settings),
        [*_about_images(options, source, len(scenes)), *_about_method(settings, sitters)],
    )
    return Inspected(numbers, write_inspection(Path(options.output_dir), subject, numbers, scenes))


def count(side: TeacherSide, images: InspectedImages, options: InspectOptions) -> Numbers:
    """The statistics over so many images, batch by batch."""
    chosen = building.evenly(range(len(images)), options.statistics_images or len(images))
    counted = QueryStatistics(side.adapter.num_layers)
    device = next(side.adapter.model.parameters()).device
    starts = range(0, len(chosen), options.batch_size)
    for start in tqdm(starts, desc="inspect", leave=False, disable=None):
        batch = images.batch(chosen[start : start + options.batch_size]).to(device)
        lesson = side.read(batch, capture_attention=True).lesson
        foreground = Foreground.of(lesson.view, batch.for_teacher())
        counted.add(lesson.view, lesson.groups, lesson.targets, foreground)
    return counted.numbers()


@dataclass(frozen=True, slots=True)
class _Sitters:
    """The models, in eval mode on their device."""

    teacher: DetrAdapter
    label_map: LabelMap
    student: DetrAdapter | None

    @classmethod
    def open(cls, pair: PairOptions, source: DetectionIndex | list[Path]) -> "_Sitters":
        assert pair.teacher is not None
        teacher = building.open_model(
            pair.teacher, None, box_frame=pair.teacher_box_frame, trust_remote_code=pair.trust_remote_code
        )
        classes = source.class_names if isinstance(source, DetectionIndex) else own_classes(teacher)
        label_map = LabelMap.between(teacher.id2label, classes)
        student = None
        if any(getattr(pair, one.name) is not None for one in fields(pair) if one.name.startswith("student")):
            set_seed(_SEED)
            student, _, _ = make_student(pair, teacher, classes, _SEED)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for adapter in (teacher, student):
            if adapter is not None:
                as_teacher(adapter).model.to(device)
        return cls(teacher, label_map, student)

    def sizes(self, data: SourceOptions, pair: PairOptions) -> tuple[ImageSize, ImageSize]:
        """What student and teacher see; the same without a student."""
        return image_sizes.choose_sizes(data, pair, self.student or self.teacher, self.teacher)


def _source(options: InspectOptions, data: SourceOptions) -> DetectionIndex | list[Path]:
    """The labelled images or the image files that were asked for."""
    folder = Path(options.output_dir)
    if folder.is_file():
        raise ConfigError(f"--output_dir {folder} is a file; give a folder.")
    has_data = any(getattr(data, name) is not None for name in _DATA)
    if options.image is not None and has_data:
        raise ConfigError("Give --image for files without labels, or --data for labelled images; not both.")
    if options.image is not None:
        return image_files(options.image)
    if not has_data:
        raise ConfigError("No images: give --data DIR for labelled images, or --image FILE for files without labels.")
    if options.split not in ("train", "val") and data.val_annotations is not None:
        raise ConfigError(f"--split {options.split} names a split of --data, but --val_annotations was given.")
    index = building.open_split(data, options.split)
    if index is None or not len(index):
        raise ConfigError(f"The data has no images in the split '{options.split}'.")
    return index


def _agfd(settings: MethodSettings, teacher: DetrAdapter) -> AttentionGuidedFeature | None:
    """The term whose mask is shown; the mask is the teacher's alone, so the teacher may stand for the student."""
    only = replace(settings, lapd=LapdSettings(weight=0.0))
    term, _ = build_terms(only, student=teacher, teacher=teacher).get("agfd", (None, 0.0))
    return term if isinstance(term, AttentionGuidedFeature) else None


def _apprentice(settings: MethodSettings, sitters: _Sitters) -> Apprentice | None:
    """The student with the term that pairs it; None without one of them."""
    if sitters.student is None:
        return None
    only = replace(settings, agfd=AgfdSettings(weight=0.0))
    term, _ = build_terms(only, student=sitters.student, teacher=sitters.teacher).get("lapd", (None, 0.0))
    return Apprentice(sitters.student, term) if isinstance(term, LocalAlignmentPrediction) else None


def _about_images(options: InspectOptions, source: DetectionIndex | list[Path], shown: int) -> Iterator[str]:
    if isinstance(source, DetectionIndex):
        yield f"{shown} images are drawn, evenly spread over those of the split '{options.split}' that hold objects."
        return
    yield (
        "There is no ground truth: objects are what the teacher itself is sure of, queries of its last layer whose "
        f"best score is at least {options.threshold:g}. What it misses is missing here, and the last layer's positives "
        "overlap these objects perfectly, since they are them."
    )


def _about_method(settings: MethodSettings, sitters: _Sitters) -> Iterator[str]:
    unknown = [
        name for name, known in zip(sitters.label_map.student_names, sitters.label_map.known, strict=True) if not known
    ]
    if unknown:
        yield f"The teacher does not know {', '.join(unknown)}: objects of these classes are drawn pale, and left out."
    if not settings.agfd.weight or settings.agfd.mask != "attention":
        yield "This method has no attention mask, so none is shown."
    if sitters.student is None:
        return
    if not settings.lapd.weight:
        yield "This method pairs no predictions (LAPD is off), so no pairs are shown."
    alone = [str(stride) for stride in sitters.teacher.strides if stride not in sitters.student.strides]
    if settings.agfd.weight and alone:
        yield f"The teacher's memory of stride {', '.join(alone)} has no partner in the student, and is not distilled."
