"""Detection data of any format, told apart by what lies in the folder."""

import os
from pathlib import Path

from qskd.data.formats.coco import CocoSource
from qskd.data.formats.hub import HubSource
from qskd.data.formats.layout import Source, subfolders
from qskd.data.formats.voc import VocSource
from qskd.data.formats.yolo import YoloSource
from qskd.errors import DataError

_MOST_FOLDERS = 20  # looked into for data one level down
FORMATS = ("auto", "coco", "yolo", "voc", "hf")

_LAYOUTS = """\
  COCO   annotations/instances_train.json with images/, or train/_annotations.coco.json beside the images
  YOLO   data.yaml with train, val and names; or images/ and labels/ with classes.txt
  VOC    Annotations/*.xml with JPEGImages/ and ImageSets/Main/, or train/*.xml beside the images
  HF     a dataset written by save_to_disk, a folder that datasets.load_dataset reads, or a hub id"""


def open_source(data: str | Path, format: str = "auto") -> Source:
    """The data at a path, or with a name on the hub.

    Args:
        data: a folder, a YOLO ``data.yaml``, or the id of a Hugging Face dataset.
        format: one of ``FORMATS``; "auto" looks at the folder, COCO first, then Hugging Face, YOLO and VOC. Where
            nothing lies in it but a folder with data, as in unpacked archives, that one is opened.

    Raises:
        DataError: nothing there is in a known format, or not in that one; says what was looked for.
    """
    if format not in FORMATS:
        raise DataError(f"There is no data format '{format}'. Give one of {', '.join(FORMATS)}.")
    path = Path(os.path.expanduser(data))
    if path.suffix.lower() == ".json" and path.is_file():
        raise DataError(
            f"{path} is an annotation file; its images could be anywhere. Give --train_annotations {path} with "
            "--train_images DIR, or the folder that holds both as --data."
        )
    if not os.path.exists(path):
        return _from_hub(str(data), path, format)
    if found := _found(path, format):
        return found
    if not path.is_dir():
        raise DataError(f"{path} is a file. Give a folder (unpack an archive first), or YOLO's data.yaml.")
    if found := _one_level_down(path, format):
        return found
    what = "no data of a known format" if format == "auto" else f"no {format} data"
    raise DataError(f"{path} holds {what}. It may hold:\n{_LAYOUTS}")


def _found(path: Path, format: str) -> Source | None:
    finders = {"coco": CocoSource.find, "hf": HubSource.find, "yolo": YoloSource.find, "voc": VocSource.find}
    for name, find in finders.items():
        if format in ("auto", name) and (found := find(path)):
            return found
    return None


def _one_level_down(path: Path, format: str) -> Source | None:
    """The data in the one folder of a folder that holds some.

    Raises:
        DataError: several do, or what the only one holds cannot be used.
    """
    folders = [folder for folder in subfolders(path) if folder.name != "__MACOSX"]
    if len(folders) > _MOST_FOLDERS:
        return None
    found: dict[Path, Source] = {}
    for folder in folders:
        try:
            source = _found(folder, format)
        except DataError:
            if len(folders) == 1:
                raise
            continue
        if source:
            found[folder] = source
    if len(found) > 1:
        raise DataError(f"{path} holds several data sets: {', '.join(map(str, found))}. Give one of them.")
    return next(iter(found.values()), None)


def _from_hub(name: str, path: Path, format: str) -> Source:
    is_path = name.count("/") > 1 or name.startswith((".", "~", "/")) or "\\" in name
    if is_path or format not in ("auto", "hf"):
        raise DataError(f"{path} does not exist. Give a folder of detection data, or the id of a dataset on the hub.")
    return HubSource.on_hub(name)
