"""The set of builders_formats in layouts of Hugging Face datasets."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from builders_formats import CLASSES, PICTURES, Box, Picture, encoded, layout, put, put_images
from builders_yolo import yolo_line

XYXY: Callable[[Box, Picture], list[float]] = lambda box, _: [box[1], box[2], box[1] + box[3], box[2] + box[4]]  # noqa: E731


def xywh(box: Box, picture: Picture) -> list[float]:
    return [float(value) for value in box[1:]]


def cxcywh_fraction(box: Box, picture: Picture) -> list[float]:
    return [float(cell) for cell in yolo_line(box, picture).split()[1:]]


def xyxy_fraction(box: Box, picture: Picture) -> list[float]:
    _, x, y, w, h = box
    return [x / picture.width, y / picture.height, (x + w) / picture.width, (y + h) / picture.height]


def hub_rows(
    split: str,
    label: Callable[[int], Any] = lambda number: number,
    box: Callable[[Box, Picture], list[float]] = xywh,
    keys: tuple[str, str] = ("bbox", "category"),
    *,
    records: bool = False,
) -> Iterator[dict[str, Any]]:
    for picture in PICTURES[split]:
        pairs = [(box(one, picture), label(one[0])) for one in picture.boxes]
        objects: Any = [dict(zip(keys, pair, strict=True)) for pair in pairs]
        if not records:
            objects = {key: [pair[at] for pair in pairs] for at, key in enumerate(keys)}
        image = {"bytes": encoded(picture.name, picture.width, picture.height), "path": None}
        yield {"image": image, "objects": objects}


def hub_features(label: Any, keys: tuple[str, str] = ("bbox", "category"), *, records: bool = False) -> Any:
    from datasets import Features, Image, List, Value

    box = List(Value("float64"))
    objects = List(dict(zip(keys, (box, label), strict=True)))
    if not records:
        objects = dict(zip(keys, (List(box), List(label)), strict=True))
    return Features({"image": Image(), "objects": objects})


def hub_dataset(split: str, kind: Any, **how: Any) -> Any:
    from datasets import Dataset

    features = hub_features(kind, how.get("keys", ("bbox", "category")), records=how.get("records", False))
    return Dataset.from_list(list(hub_rows(split, **how)), features=features)


def _hub_layout(name: str, kind: Callable[[], Any], about: dict[str, Any] | None = None, **how: Any) -> None:
    @layout(f"hf-{name}", **(about or {}))
    def write(folder: Path) -> None:
        from datasets import DatasetDict

        names = {"train": "train", "val": "validation", "test": "test"}
        parts = {name: hub_dataset(split, kind(), **how) for split, name in names.items()}
        DatasetDict(parts).save_to_disk(str(folder))


def class_label(names: Sequence[str] = CLASSES) -> Any:
    from datasets import ClassLabel

    return ClassLabel(names=list(names))


def value(kind: str) -> Any:
    from datasets import Value

    return Value(kind)


NUMBERED = {"class_names": ("0", "1", "2")}

_hub_layout("lists", class_label)
_hub_layout("records", class_label, records=True)
_hub_layout("texts", lambda: value("string"), label=CLASSES.__getitem__)
_hub_layout("numbers", lambda: value("int64"), NUMBERED)
_hub_layout("classes that are numbers", lambda: class_label("321"), {"class_names": ("3", "2", "1")})
_hub_layout("corners", class_label, {"box_format": "xyxy"}, box=XYXY)
_hub_layout("fractions", class_label, {"box_format": "cxcywh_fraction"}, box=cxcywh_fraction)
_hub_layout("corners in fractions", class_label, {"box_format": "xyxy_fraction"}, box=xyxy_fraction)
_hub_layout("other names", class_label, keys=("bboxes", "label"))


@layout("hf-one split", splits=("train",))
def _(folder: Path) -> None:
    hub_dataset("train", class_label()).save_to_disk(str(folder))


@layout("hf-a format of tensors", splits=("train",))
def _(folder: Path) -> None:
    hub_dataset("train", class_label()).with_format("numpy").save_to_disk(str(folder))


@layout("hf-columns of the row", splits=("train",))
def _(folder: Path) -> None:
    whole = hub_dataset("train", class_label(), keys=("bboxes", "labels")).flatten()
    renamed = whole.rename_columns({"objects.bboxes": "bboxes", "objects.labels": "labels"})
    renamed.save_to_disk(str(folder))


@layout("hf-annotations like coco's", splits=("train",))
def _(folder: Path) -> None:
    hub_dataset("train", class_label(), records=True).rename_column("objects", "annotations").save_to_disk(str(folder))


@layout("hf-parquet")
def _(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        hub_dataset(split, class_label()).to_parquet(str(folder / "data" / f"{name}-00000-of-00001.parquet"))


@layout("hf-parquet of another library", splits=("train",), class_names=("0", "1", "2"))
def _(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(hub_rows("train"))), str(folder / "train.parquet"))


@layout("hf-bytes alone", splits=("train",), class_names=CLASSES)
def _(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row | {"image": row["image"]["bytes"]} for row in hub_rows("train", CLASSES.__getitem__, records=True)]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), str(folder / "train.parquet"))


def _metadata(split: str) -> str:
    rows = zip(PICTURES[split], hub_rows(split, CLASSES.__getitem__), strict=True)
    return "".join(json.dumps({"file_name": one.name, "objects": row["objects"]}) + "\n" for one, row in rows)


@layout("hf-image folder")
def _(folder: Path) -> None:
    for split in PICTURES:
        put_images(folder / split, split)
        put(folder / split / "metadata.jsonl", _metadata(split))


@layout("hf-image folder without splits", splits=("train",))
def _(folder: Path) -> None:
    put_images(folder, "train")
    put(folder / "metadata.jsonl", _metadata("train"))
