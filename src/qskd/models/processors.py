"""What stands beside a model's weights: pixel normalisation, image processor, model card."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError
from qskd.models.adapter import DetrAdapter, PixelNorm
from qskd.models.shared_weights import state_without_copies

IMAGENET = PixelNorm(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

_UNNORMALISED = frozenset({"d_fine", "deimv2", "rt_detr", "rt_detr_v2"})  # all others: ImageNet's
_PROCESSORS: dict[str, str] = {
    "conditional_detr": "ConditionalDetrImageProcessor",
    "dab-detr": "ConditionalDetrImageProcessor",  # the one its published checkpoints name
    "d_fine": "RTDetrImageProcessor",
    "deformable_detr": "DeformableDetrImageProcessor",
    "deimv2": "RTDetrImageProcessor",
    "detr": "DetrImageProcessor",
    "lw_detr": "DeformableDetrImageProcessor",
    "rf_detr": "RfDetrImageProcessor",
    "rt_detr": "RTDetrImageProcessor",
    "rt_detr_v2": "RTDetrImageProcessor",
    "table-transformer": "DetrImageProcessor",
}
_NORM_FILE = "preprocessor_config.json"
_USUAL_SHAPE = 1333 / 800  # longest by shortest edge, where only the shortest is given


def default_pixel_norm(config: Any) -> PixelNorm:
    """The normalisation that published checkpoints of this kind use: ImageNet's, or none for RT-DETR and its like.

    DEIMv2 has both: none with HGNetV2, ImageNet's with DINOv3.
    """
    backbone = getattr(getattr(config, "backbone_config", None), "model_type", "")
    is_plain = config.model_type in _UNNORMALISED and not backbone.startswith("dinov3")
    return PixelNorm() if is_plain else IMAGENET


def pixel_norm_of(name_or_path: str | Path, config: Any) -> PixelNorm:
    """The normalisation a checkpoint's image processor applies.

    Args:
        name_or_path: a local folder or a hub id.
        config: the model's, for checkpoints without ``preprocessor_config.json``.

    Raises:
        CheckpointError: the processor keeps pixels in [0, 255], which qskd does not.
    """
    found = _processor_file(name_or_path)
    if found is None:
        return default_pixel_norm(config)
    return _norm_from(found, _rescaling(found), default_pixel_norm(config))


def given_pixel_norm(name_or_path: str | Path) -> PixelNorm | None:
    """The normalisation that the image processor of a backbone or classifier applies; None where it brings none.

    Raises:
        CheckpointError: as ``pixel_norm_of``.
    """
    found = _processor_file(name_or_path)
    return None if found is None else _norm_from(found, _rescaling(found), IMAGENET)


def checked_norm(where: Any, mean: Any, std: Any, names: tuple[str, str] = ("image_mean", "image_std")) -> PixelNorm:
    """Mean and deviation as somebody wrote them down.

    Raises:
        CheckpointError: they are not one number or three, deviations above 0.
    """
    return PixelNorm(mean=_three(where, names[0], mean), std=_three(where, names[1], std, is_deviation=True))


def _rescaling(found: Path) -> dict[str, Any]:
    """Settings of an image processor that divides pixels by 255."""
    settings = _settings(found)
    if not settings.get("do_rescale", True):
        raise CheckpointError(
            f"{found} says do_rescale: false, so the model takes pixels in [0, 255]; qskd feeds [0, 1]. "
            "Use a checkpoint whose image processor rescales."
        )
    factor = settings.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-3:
        raise CheckpointError(f"{found} has rescale_factor {factor!r:.40}; qskd feeds pixels divided by 255.")
    return settings


def _settings(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}). Copy it again, or remove it.") from error
    return content if isinstance(content, dict) else {}


def _norm_from(path: Path, settings: Mapping[str, Any], default: PixelNorm) -> PixelNorm:
    """Settings of an image processor as a PixelNorm; what they leave out is the default."""
    if not settings.get("do_normalize", default != PixelNorm()):
        return PixelNorm()
    mean, std = settings.get("image_mean"), settings.get("image_std")
    mean, std = IMAGENET.mean if mean is None else mean, IMAGENET.std if std is None else std
    return checked_norm(path, mean, std)


def _three(path: Any, key: str, values: Any, *, is_deviation: bool = False) -> tuple[float, float, float]:
    numbers = [values] * 3 if isinstance(values, int | float) else list(values) if isinstance(values, tuple) else values
    is_good = isinstance(numbers, list) and len(numbers) == 3 and all(isinstance(one, int | float) for one in numbers)
    if not is_good or (is_deviation and min(numbers) <= 0):
        raise CheckpointError(f"{path} has {key} {values!r:.80}; expected one number or three, deviations above 0.")
    red, green, blue = (float(value) for value in numbers)
    return red, green, blue


def _processor_file(name_or_path: str | Path) -> Path | None:
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / _NORM_FILE
        return path if path.is_file() else None
    cached = transformers.utils.cached_file(
        str(name_or_path),
        _NORM_FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return Path(cached) if cached else None


def image_processor_of(adapter: DetrAdapter, size: ImageSize) -> Any:
    """The family's Hugging Face image processor, doing what qskd did in training.

    Args:
        adapter: its pixel normalisation is the processor's.
        size: what images are resized to.
    """
    processor = getattr(transformers, _PROCESSORS[adapter.family])
    return processor(
        do_resize=True,
        size=_size(size),
        do_rescale=True,
        do_normalize=adapter.pixel_norm != PixelNorm(),
        image_mean=list(adapter.pixel_norm.mean),
        image_std=list(adapter.pixel_norm.std),
        do_pad=size.square is None,
    )


def _size(size: ImageSize) -> dict[str, int]:
    if size.square is not None:
        return {"height": size.square, "width": size.square}
    assert size.shortest_edge is not None
    assert size.longest_edge is not None
    return {"shortest_edge": size.shortest_edge, "longest_edge": size.longest_edge}


def image_size_of(name_or_path: str | Path) -> ImageSize | None:
    """The size a checkpoint's image processor resizes to; None without one, or with another kind of size.

    Raises:
        CheckpointError: the file says something that is no size.
    """
    found = _processor_file(name_or_path)
    settings = _settings(found) if found else {}
    size = settings.get("size")
    if size is None:
        return None
    if isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    elif not isinstance(size, dict):  # as the first DETR checkpoints have it
        size = {"shortest_edge": size, "longest_edge": settings.get("max_size")}
    given = [size.get(key) for key in ("height", "width", "shortest_edge", "longest_edge")]
    if any(value is not None and (type(value) is not int or value < 1) for value in given):
        raise CheckpointError(f"{found} has the size {settings['size']!r:.80}; expected whole numbers of pixels.")
    height, width, shortest, longest = given
    if height and height == width:
        return ImageSize(square=height)
    if shortest and not longest:
        return ImageSize(shortest_edge=shortest, longest_edge=round(shortest * _USUAL_SHAPE))
    if not longest:
        return None
    # Table Transformer's newer files give the longest alone: the image just fits.
    return ImageSize(shortest_edge=min(shortest or longest, longest), longest_edge=longest)


def save_model(adapter: DetrAdapter, folder: str | Path, *, size: ImageSize, extra_card: str = "") -> Path:
    """Write a folder that ``from_pretrained`` loads: safetensors, image processor, model card.

    Args:
        adapter: the model to write.
        folder: made when it is not there; files of the same names are overwritten.
        size: the image size the model was trained for, see ``ImageSize``.
        extra_card: Markdown put at the end of the model card, for example scores.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model: Any = adapter.model
    model.save_pretrained(folder, state_dict=state_without_copies(model))
    image_processor_of(adapter, size).save_pretrained(folder)
    (folder / "README.md").write_text(_card(adapter, size, extra_card), encoding="utf-8")
    return folder


_CARD = """\
---
library_name: transformers
pipeline_tag: object-detection
tags: [object-detection, {family}]
---
# {family} detector, {classes} classes, {millions:.1f} M parameters

Trained with qskd on images of {size}. Boxes are fractions of {frame}.

```python
from transformers import AutoImageProcessor, AutoModelForObjectDetection

processor = AutoImageProcessor.from_pretrained("{folder}")
model = AutoModelForObjectDetection.from_pretrained("{folder}")
```

Classes: {names}.
"""


def _card(adapter: DetrAdapter, size: ImageSize, extra: str) -> str:
    names = adapter.id2label
    text = _CARD.format(
        family=adapter.family,
        frame="the unpadded image" if adapter.box_frame == "content" else "the padded canvas",
        classes=len(names),
        millions=sum(parameter.numel() for parameter in adapter.model.parameters()) / 1e6,
        size=in_words(size),
        names=", ".join(_plain(names[index]) for index in sorted(names)),
        folder="path/to/this/folder",
    )
    return f"{text}\n{extra.strip()}\n" if extra.strip() else text


def _plain(name: str) -> str:
    """A class name as one line of Markdown in which nothing of it is markup."""
    text = html.escape("".join(letter if letter.isprintable() else " " for letter in name), quote=False)
    return re.sub(r"([\\`*_\[\]|~#!$])", r"\\\1", text)


def in_words(size: ImageSize) -> str:
    """A size as people say it."""
    if size.square is not None:
        return f"{size.square} x {size.square} pixels"
    return f"{size.shortest_edge} to {size.longest_edge} pixels, aspect ratio kept"
