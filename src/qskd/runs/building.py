"""From options to objects: datasets, models, the distiller."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qskd.data.caching import open_cache
from qskd.data.dataset import DetectionDataset
from qskd.data.formats.coco import load_coco
from qskd.data.formats.hub import HubSource
from qskd.data.formats.layout import Source
from qskd.data.images import check_image
from qskd.data.index import DetectionIndex
from qskd.data.sources import open_source
from qskd.data.transforms import Augmentation, ImageSize, build_transform
from qskd.data.unlabeled import UnlabeledDataset, open_unlabeled
from qskd.errors import ConfigError
from qskd.models.adapter import DetrAdapter
from qskd.models.backbone_weights import load_backbone_weights
from qskd.models.initialising import freeze_backbone_norms
from qskd.models.loading import BoxFrame, load_model, new_model
from qskd.runs.folder import RunFolder
from qskd.runs.options import DataOptions, SourceOptions
from qskd.trainer import DistillationConfig

_READERS = 8  # files looked at together: network disks answer slowly, but many at a time


@dataclass(frozen=True, slots=True)
class Splits:
    """The two indices of a run, with one vocabulary."""

    train: DetectionIndex
    val: DetectionIndex | None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the training split, in the order of their indices."""
        return self.train.class_names

    def problems(self) -> list[str]:
        """What could not be used as it was, one line a kind."""
        both = {"train": self.train, "val": self.val}
        return [f"{name}: {line}" for name, index in both.items() if index for line in index.problems.lines()]


def open_split(options: SourceOptions, split: str, class_names: Sequence[str] | None = None) -> DetectionIndex | None:
    """One split of the data, or None for a validation split where only files to train on were named.

    Raises:
        ConfigError: no data was named, or only half of a pair.
        DataError: the files cannot be used.
    """
    key = "train" if split == "train" else "val"
    annotations = getattr(options, f"{key}_annotations")
    images = getattr(options, f"{key}_images")
    if (annotations is None) != (images is None):
        raise ConfigError(f"Give --{key}_annotations and --{key}_images together, or --data alone.")
    if annotations is None:
        if options.data is None:
            if split != "train" and options.train_annotations:
                return None
            raise ConfigError(
                "No data: give --data (a folder of COCO, YOLO or VOC data, or a Hugging Face dataset), or "
                f"--{key}_annotations FILE with --{key}_images DIR."
            )
        name = {"train": options.train_split, "val": options.val_split}.get(split, split)
        return open_data(options).load(name, class_names=class_names, strict=options.strict_data)
    return load_coco(Path(annotations), Path(images), class_names=class_names, strict=options.strict_data)


def open_data(options: SourceOptions) -> Source:
    """What ``--data`` is.

    Raises:
        ConfigError: it was not given.
        DataError: nothing there is in a known format.
    """
    if options.data is None:
        raise missing_option("--data", "a folder of COCO, YOLO or VOC data, or a Hugging Face dataset")
    source = open_source(options.data, options.data_format)
    return source.with_boxes(options.box_format) if isinstance(source, HubSource) else source


def open_splits(options: SourceOptions) -> Splits:
    """Training and validation split, the second read with the first one's vocabulary."""
    train = open_split(options, "train")
    assert train is not None
    if len(train) == 0:
        raise ConfigError("The training split holds no images.")
    val = open_split(options, "val", train.class_names)
    for index in (train, val) if val is not None else (train,):
        check_images(index)
    return Splits(train, val)


def check_images(index: DetectionIndex) -> None:
    """Look at both ends of every image file: 1000 files take 0.2 s, finding a bad one in the night a night.

    Raises:
        DataError: a file is no image, cut off, or of another size than the annotations say.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(check_image, index.images):
            pass


def datasets(
    splits: Splits,
    options: DataOptions,
    size: ImageSize,
    seed: int,
    teacher_size: ImageSize | None = None,
    workers: int = 1,
) -> tuple[DetectionDataset, DetectionDataset | None]:
    """The training data, augmented, and the validation data, resized only.

    ``teacher_size`` adds the teacher's pixels to the training data where they are of another size; ``workers`` are the
    processes that load images.
    """
    own = teacher_size if teacher_size != size else None
    augment = _augmentation(options)
    side = _decoded_side(size, own, augment)
    folder = Path(options.cache_dir).expanduser()
    train = DetectionDataset(
        splits.train,
        build_transform(size, train=True, augment=augment),
        seed,
        decode_at_least=side,
        teacher_transform=build_transform(own, train=True, augment=augment) if own else None,
        cache=open_cache(options.cache_images, splits.train, side, folder, workers),
    )
    if splits.val is None:
        return train, None
    val = evaluation_dataset(splits.val, size)
    val.cache = open_cache(options.cache_images, splits.val, None, folder, workers)
    return train, val


def unlabeled_dataset(
    folder: Path, splits: Splits, options: DataOptions, size: ImageSize, seed: int, teacher_size: ImageSize
) -> UnlabeledDataset:
    """Images without annotations, augmented as the training data is.

    Raises:
        DataError: there are none, or one of them cannot be read.
    """
    index = open_unlabeled(folder, splits.class_names)
    check_images(index)
    own = teacher_size if teacher_size != size else None
    augment = _augmentation(options)
    return UnlabeledDataset(
        index,
        build_transform(size, train=True, augment=augment),
        seed,
        decode_at_least=_decoded_side(size, own, augment),
        teacher_transform=build_transform(own, train=True, augment=augment) if own else None,
    )


def _augmentation(options: DataOptions) -> Augmentation:
    return Augmentation(
        flip=options.flip, crop=options.crop, zoom_out=options.zoom_out, photometric=options.photometric
    )


def _decoded_side(size: ImageSize, own: ImageSize | None, augment: Augmentation) -> int:
    """Pixels that a JPEG's sides must keep so that even the smallest crop is not enlarged."""
    largest = max(size.largest, own.largest if own else 0)
    return math.ceil(largest / (math.sqrt(augment.crop_area) if augment.crop else 1.0))


def evaluation_dataset(index: DetectionIndex, size: ImageSize) -> DetectionDataset:
    """Images resized as the model's own image processor would."""
    return DetectionDataset(index, build_transform(size, train=False))


def open_model(
    source: str,
    class_names: Sequence[str] | None,
    *,
    box_frame: BoxFrame,
    trust_remote_code: bool = False,
    backbone_weights: str | None = None,
) -> DetrAdapter:
    """A model by hub id or folder, or with random weights from a configuration file.

    Args:
        source: hub id, folder, or configuration (.json).
        class_names: of a model from a configuration.
        box_frame: what its boxes are fractions of.
        trust_remote_code: whether a hub repository may bring code.
        backbone_weights: what the backbone of a model from a configuration starts from, instead of random weights.

    Raises:
        CheckpointError: nothing usable is there.
        ConfigError: a configuration without classes to predict, or backbone weights for a trained model.
    """
    if source.endswith(".json"):
        if class_names is None:
            raise ConfigError(f"{source} is a configuration without weights; give a trained model.")
        adapter = new_model(Path(source), class_names, box_frame=box_frame)
        if backbone_weights is not None:
            load_backbone_weights(adapter.model, backbone_weights, adapter.pixel_norm)
            freeze_backbone_norms(adapter.model)
        return adapter
    if backbone_weights is not None:
        raise ConfigError(
            f"{source} has weights of its own, so those of {backbone_weights} are not used: leave them out."
        )
    return load_model(source, box_frame=box_frame, trust_remote_code=trust_remote_code)


def evenly(candidates: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the candidates, the first and the last among them, evenly spread: files are often sorted."""
    chosen = np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(int)
    return [candidates[position] for position in chosen.tolist()]


def run_folder(config: DistillationConfig) -> RunFolder:
    """Where a training goes.

    Raises:
        ConfigError: ``output_dir`` was not given; transformers would take a folder of its own.
    """
    if config.given["output_dir"] is None:
        raise missing_option("--output_dir", "a folder for the run")
    return RunFolder(Path(config.output_dir), config.process_index == 0)


def missing_option(name: str, what: str) -> ConfigError:
    """The error for a required option that was not given."""
    return ConfigError(f"{name} was not given; it takes {what}.")
