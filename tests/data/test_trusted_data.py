"""Data may come from anybody: it names no files elsewhere, and a small file does not become a large one."""

import os
import shutil
import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from builders_runs import edited
from qskd.data.formats.coco import read_json
from qskd.data.images import check_image, read_image, read_pixels, read_whatever_size, upright_size
from qskd.data.index import ImageRecord
from qskd.data.sources import open_source
from qskd.data.unlabeled import open_unlabeled
from qskd.errors import DataError, QskdError
from qskd.runs.building import check_images

BOX = "0 0.5 0.5 0.2 0.2\n"


def named(scenes: Path, folder: Path, name: str) -> Path:
    return edited(scenes, folder, lambda content: content["images"][0].update(file_name=name), "train")


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/passwd", "..\\x.jpg", "C:x.jpg", "a/../../x.jpg", "a\0.jpg", "\0"])
def test_a_name_in_coco_data_stays_in_its_folder(scenes, tmp_path, name):
    with pytest.raises(DataError):
        open_source(named(scenes, tmp_path / "data", name)).load("train")


@pytest.mark.parametrize("target", ["/etc/passwd", "/dev/zero", "/proc/self/environ"])
def test_a_link_that_leads_out_gives_nothing_away(scenes, tmp_path, target):
    """Links are followed, as in folders of links to images; what is no image is refused unread."""
    data = named(scenes, tmp_path / "data", "evil.jpg")
    (data / "images").unlink()
    (data / "images").mkdir()
    for path in scenes.glob("images/**/*.*"):
        (data / "images" / path.relative_to(scenes / "images")).parent.mkdir(parents=True, exist_ok=True)
        (data / "images" / path.relative_to(scenes / "images")).symlink_to(path)
    inner = next(path for path in (data / "images").rglob("*") if path.is_symlink()).parent
    for folder in {data / "images", inner}:
        (folder / "evil.jpg").symlink_to(target)
    with pytest.raises(DataError) as caught:
        check_images(open_source(data).load("train"))
    assert "evil.jpg" in str(caught.value)
    assert "root:" not in str(caught.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../../../../../etc/passwd", "a\0.jpg", "..\\..\\secret.jpg"])
def test_a_list_of_yolo_images_reads_nothing_but_images(tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.yaml").write_text("train: list.txt\nval: list.txt\nnames: [cat]\n")
    (tmp_path / "data" / "list.txt").write_text(name + "\n")
    with pytest.raises(DataError, match="no image") as caught:
        open_source(tmp_path / "data").load("train")
    assert "root:" not in str(caught.value)


@pytest.mark.parametrize("key", ["train", "path"])
@pytest.mark.parametrize("value", ["/", "/etc/passwd", "../../../../../../../etc", '"a\\0b"'])
def test_a_yolo_description_reads_nothing_but_images(tmp_path, key, value):
    given = {"train": "images", "val": "images", "names": "[cat]"} | {key: value}
    (tmp_path / "data.yaml").write_text("".join(f"{name}: {text}\n" for name, text in given.items()))
    with pytest.raises(DataError) as caught:
        open_source(tmp_path / "data.yaml").load("train")
    assert "root:" not in str(caught.value)


@pytest.mark.parametrize("depth", [5_000, 200_000])
def test_annotations_nested_without_end_are_refused(tmp_path, depth):
    for name, text in (("a", "[" * depth + "]" * depth), ("b", '{"a":' * depth + "1" + "}" * depth)):
        path = tmp_path / f"{name}.json"
        path.write_text('{"images": ' + text + "}")
        try:
            content = read_json(path)
        except DataError as error:
            assert path.name in str(error)  # noqa: PT017 - some versions of Python read what others refuse
        else:
            assert isinstance(content, dict)
    with pytest.raises(QskdError):
        open_source(tmp_path).load("train")


# ---- decompression bombs ---------------------------------------------------------------------------------

SIDE = 20_000  # 400 million pixels, of a few hundred bytes


@pytest.fixture(scope="module")
def bomb(tmp_path_factory) -> Path:
    """A PNG whose head promises far more than its body holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path_factory.mktemp("bomb") / "bomb.png"
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 16))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


def test_a_bomb_is_refused_on_every_way_to_its_pixels(bomb, tmp_path):
    record = ImageRecord(1, bomb, SIDE, SIDE, None)
    ways = [
        lambda: read_pixels(bomb, height=SIDE, width=SIDE),  # training, evaluation, caches
        lambda: read_image(record),
        lambda: check_image(record),  # before a run
        lambda: read_whatever_size(bomb),  # predict, inspect
        lambda: upright_size(bomb),  # YOLO and VOC
        lambda: open_unlabeled(bomb.parent, ["cat"]),  # images without annotations
    ]
    began = time.perf_counter()
    for way in ways:
        with pytest.raises(DataError):
            way()
    assert time.perf_counter() - began < 5
    assert Image.MAX_IMAGE_PIXELS is not None
    assert os.path.getsize(bomb) < 10_000


def test_a_bomb_in_coco_data_is_named(bomb, scenes, tmp_path):
    def add(content):
        content["images"][0] |= {"file_name": "bomb.png", "width": SIDE, "height": SIDE}

    data = edited(scenes, tmp_path / "data", add, "train")
    (data / "images").unlink()
    shutil.copytree(scenes / "images", data / "images")
    shutil.copy(bomb, data / "images" / "train")
    index = open_source(data).load("train")
    with pytest.raises(DataError, match=r"bomb\.png"):
        check_image(index.images[0])
