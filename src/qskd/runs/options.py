"""What a user can say about a run, beside ``DistillationConfig``: the data, the models, the method."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field, make_dataclass
from difflib import get_close_matches
from typing import Any, Literal

from qskd.errors import ConfigError
from qskd.losses.presets import PRESETS, MethodSettings, option_names, options_of, resolve


def no_option(name: str, known: Iterable[str]) -> ConfigError:
    """The error for a keyword or a flag (also one with its value, ``--name=value``) that does not exist."""
    near = get_close_matches(name.split("=")[0], list(known), n=1)
    return ConfigError(f"There is no option '{name}'." + (f" Did you mean '{near[0]}'?" if near else ""))


@dataclass
class SourceOptions:
    """The images and the size they are given to models in."""

    data: str | None = field(
        default=None,
        metadata={"help": "Folder of COCO, YOLO or Pascal VOC data, a YOLO data.yaml, or a Hugging Face dataset."},
    )
    data_format: Literal["auto", "coco", "yolo", "voc", "hf"] = field(
        default="auto", metadata={"help": "What --data is in, if it cannot be told by itself."}
    )
    box_format: Literal["xywh", "xyxy", "cxcywh", "xywh_fraction", "xyxy_fraction", "cxcywh_fraction"] = field(
        default="xywh", metadata={"help": "How a Hugging Face dataset writes its boxes."}
    )
    train_split: str = field(default="train", metadata={"help": "Which split of --data to train on."})
    val_split: str = field(default="val", metadata={"help": "Which split of --data to measure on."})
    train_annotations: str | None = field(default=None, metadata={"help": "COCO json, instead of --data."})
    train_images: str | None = field(default=None, metadata={"help": "Folder of the training images."})
    val_annotations: str | None = field(default=None, metadata={"help": "COCO json, instead of --data."})
    val_images: str | None = field(default=None, metadata={"help": "Folder of the validation images."})
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the square that images are resized to; with --max_image_size the shortest edge. "
            "Default: what the model's processor says."
        },
    )
    max_image_size: int | None = field(
        default=None,
        metadata={"help": "Longest edge; keeps the aspect ratio (families that read padding only)."},
    )
    strict_data: bool = field(
        default=False,
        metadata={
            "help": "Refuse degenerate and outside boxes instead of dropping them.",
            "aliases": ["--strict"],
        },
    )


@dataclass
class DataOptions(SourceOptions):
    """The images of a training, and how they are varied."""

    flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    crop: float = field(default=0.5, metadata={"help": "Probability of a crop that keeps objects."})
    zoom_out: float = field(default=0.0, metadata={"help": "Probability of shrinking the image on a canvas."})
    photometric: float = field(default=0.5, metadata={"help": "Probability of a photometric distortion."})
    cache_images: Literal["none", "memory", "disk"] = field(
        default="none",
        metadata={"help": "Keep decoded images in memory or on disk (--cache_dir); same pixels."},
    )
    cache_dir: str = field(
        default="~/.cache/qskd/images", metadata={"help": "Folder of images that --cache_images disk keeps."}
    )


@dataclass
class ModelOptions:
    """A model."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder, or a configuration (.json) to train from scratch.",
            "aliases": ["--model_name_or_path"],
        },
    )
    box_frame: Literal["content", "canvas"] = field(
        default="content",
        metadata={"help": "What the model's boxes are fractions of when images are padded."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that a hub repository brings."})


@dataclass
class TrainOptions(ModelOptions):
    """The model of `train`."""

    backbone_weights: str | None = field(
        default=None,
        metadata={
            "help": "Folder or hub id whose backbone weights a model from a configuration starts from; its batch norms "
            "keep what they are."
        },
    )


@dataclass
class CacheOptions:
    """The teacher of `cache`, and how its answers are kept."""

    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of the trained teacher.",
            "aliases": ["--teacher_model_name_or_path"],
        },
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the cache; `distill --teacher_cache`."})
    epochs: int = field(default=1, metadata={"help": "Epochs of augmentations to keep; longer runs replay them."})
    cache_dtype: Literal["float16", "bfloat16", "float32"] = field(
        default="float16", metadata={"help": "Type of kept logits, memory and attention; float32 is exact."}
    )
    teacher_box_frame: Literal["content", "canvas"] = field(
        default="content", metadata={"help": "What the teacher's boxes are fractions of when images are padded."}
    )
    teacher_image_size: int | None = field(
        default=None,
        metadata={"help": "The teacher's own size, where it is not the student's --image_size."},
    )
    teacher_max_image_size: int | None = field(
        default=None, metadata={"help": "Longest edge of the teacher's images; keeps the aspect ratio."}
    )
    batch_size: int = field(default=8, metadata={"help": "Images that the teacher sees at once."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that load images."})
    seed: int = field(default=42, metadata={"help": "Of the augmentations; a run with the cache has the same."})
    bf16: bool = field(default=False, metadata={"help": "Run the teacher in bfloat16 mixed precision."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use a GPU."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that a hub repository brings."})


@dataclass
class PairOptions:
    """Teacher and student of `distill`."""

    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of the trained teacher.",
            "aliases": ["--teacher_model_name_or_path"],
        },
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of `qskd cache`: the teacher's answers are read, and no teacher is needed."},
    )
    student: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder, or configuration (.json). Default: derived from the teacher.",
            "aliases": ["--student_model_name_or_path"],
        },
    )
    teacher_box_frame: Literal["content", "canvas"] = field(
        default="content",
        metadata={"help": "What the teacher's boxes are fractions of when images are padded."},
    )
    teacher_image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the square that the teacher's images are resized to, where it is not the student's "
            "--image_size; with --teacher_max_image_size the shortest edge."
        },
    )
    teacher_max_image_size: int | None = field(
        default=None, metadata={"help": "Longest edge of the teacher's images; keeps the aspect ratio."}
    )
    teacher_precision: Literal["as_student", "float32", "bfloat16"] = field(
        default="as_student",
        metadata={"help": "What the teacher computes in; as_student goes with --bf16 and --fp16."},
    )
    student_backbone: str | None = field(
        default=None, metadata={"help": "Backbone of a derived student: resnet18, resnet34, resnet50, ..."}
    )
    student_backbone_weights: str | None = field(
        default=None,
        metadata={
            "help": "Folder or hub id whose backbone weights a student starts from that is derived or a configuration."
        },
    )
    student_backbone_width: float | None = field(
        default=None, metadata={"help": "Factor on the channels of the derived student's backbone."}
    )
    student_encoder_layers: int | None = field(default=None, metadata={"help": "Encoder layers of a derived student."})
    student_decoder_layers: int | None = field(default=None, metadata={"help": "Decoder layers of a derived student."})
    student_num_queries: int | None = field(default=None, metadata={"help": "Queries of a derived student."})
    student_hidden_size: int | None = field(default=None, metadata={"help": "Hidden size of a derived student."})
    student_ffn_size: int | None = field(
        default=None, metadata={"help": "Inner width of a derived student's feed-forward layers."}
    )
    student_hidden_expansion: float | None = field(
        default=None,
        metadata={
            "help": "Width of a derived student's fusion blocks (RT-DETR, successors) or projector (LW-, RF-DETR)."
        },
    )
    inherit: bool = field(
        default=True,
        metadata={
            "help": "Start a derived student, or a --student that is a configuration of the teacher's family, from the "
            "teacher's weights; narrower layers from evenly spaced channels."
        },
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that a hub repository brings."})
    unlabeled: str | None = field(
        default=None, metadata={"help": "Folder of images without annotations to distil on too."}
    )
    unlabeled_batch_size: int | None = field(
        default=None, metadata={"help": "Unlabelled images beside each labelled batch. Default: as many as labelled."}
    )
    unlabeled_threshold: float = field(
        default=0.5, metadata={"help": "Detections of the teacher from this score on stand in for objects there."}
    )
    unlabeled_detection: Literal["off", "sampled"] = field(
        default="sampled",
        metadata={
            "help": "The student's detection loss on unlabelled images: each detection of the teacher with a "
            "probability that is its score, or off."
        },
    )


def _method_flags() -> list[tuple[str, Any, Any]]:
    """One flag for each option of a method: ``selection.threshold`` is ``--selection_threshold``."""
    help_text = "Option {name} of the method; default: what --method says."
    return [
        (name.replace(".", "_"), str | None, field(default=None, metadata={"help": help_text.format(name=name)}))
        for name in option_names()
    ]


_MethodFlags: Any = make_dataclass("_MethodFlags", _method_flags())


@dataclass
class MethodOptions(_MethodFlags):
    """The distillation method, and every option of it as a flag; None keeps the preset's value."""

    method: str = field(default="qskd", metadata={"help": f"One of {', '.join(PRESETS)}."})
    preflight: bool = field(
        default=True, metadata={"help": "Check teacher, labels and every term before the first epoch."}
    )

    def settings(self) -> MethodSettings:
        """The preset with what was overridden.

        Raises:
            ConfigError: no such method, or a value of the wrong type.
        """
        given = {name: getattr(self, name.replace(".", "_")) for name in option_names()}
        overrides = {name: _value(name, text) for name, text in given.items() if text is not None}
        return resolve(self.method, overrides)

    @property
    def given(self) -> dict[str, Any]:
        """Every field with what it means, whether it was a flag's text or a value: 5 for ``"5"``, ``"none"`` for None.

        Raises:
            ConfigError: no such method, or a value of the wrong type.
        """
        meant = {name.replace(".", "_"): value for name, value in options_of(self.settings()).items()}
        return {
            name: value if value is None or name not in meant else "none" if meant[name] is None else meant[name]
            for name, value in vars(self).items()
        }


_WORDS = {"true": True, "yes": True, "false": False, "no": False}


def _value(name: str, text: Any) -> Any:
    """A flag's text as the value meant: 10, 0.5, true, group, none."""
    if not isinstance(text, str):
        return text
    if text.lower() == "none" and name != "agfd.mask":
        return None
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
