"""COCO detection files and the folders they lie in."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qskd.data.index import DetectionIndex
from qskd.errors import DataError


def load_coco(
    annotations: Path,
    images: Path,
    *,
    class_names: Sequence[str] | None = None,
    strict: bool = False,
) -> DetectionIndex:
    """Read and check an annotation file.

    Args:
        annotations: the JSON file.
        images: the folder that its file names are relative to.
        class_names: see ``DetectionIndex.of``.
        strict: likewise.

    Raises:
        DataError: the file cannot be read, or see ``DetectionIndex.of``.
    """
    annotations, images = Path(annotations), Path(images)
    content = read_json(annotations)
    return DetectionIndex.of(annotations, images, content, class_names=class_names, strict=strict)


def find_split(data_dir: Path, split: str) -> tuple[Path, Path]:
    """Annotation file and image folder of a split in a folder laid out as COCO's, or more simply.

    Annotations are ``annotations/instances_{split}.json`` or ``..._{split}2017.json``; images lie in
    ``images/{split}/``, ``images/{split}2017/``, ``{split}/``, ``{split}2017/`` or ``images/``, the first
    that exists.

    Raises:
        DataError: nothing of the kind is there; says what was looked for.
    """
    data_dir = Path(data_dir)
    files = [data_dir / "annotations" / f"instances_{split}{year}.json" for year in ("", "2017")]
    folders = [
        data_dir / folder for folder in (f"images/{split}", f"images/{split}2017", split, f"{split}2017", "images")
    ]
    if not data_dir.is_dir():
        raise DataError(f"{data_dir} is not a folder. Give the folder that holds annotations/ and images/.")
    return _first(files, "annotation file", split), _first(folders, "image folder", split)


def _first(candidates: Sequence[Path], what: str, split: str) -> Path:
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise DataError(f"No {what} for the split '{split}'; looked for {looked}.")


def _without_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)  # most of COCO's bytes, and never used here
    return entry


def read_json(path: Path) -> dict[str, Any]:
    """The content of a COCO file without its outlines.

    Raises:
        DataError: it cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_without_segmentation)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Give a COCO annotation file.") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} (character {error.pos}): "
            f"{error.msg}. Is the file truncated? Copy it again."
        ) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"{path}: not a JSON text file ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: holds a {type(content).__name__}, expected a COCO object with 'images', 'annotations' "
            "and 'categories'."
        )
    return content
