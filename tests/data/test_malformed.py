"""Annotation files with every kind of damage: read with boxes inside their images, or refused by name.

The corpus is the same in every run: damage is drawn from fixed seeds, hypothesis is derandomised.
"""

import copy
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders_coco import coco
from builders_formats import CLASSES, PICTURES, put, put_images
from builders_layouts import LAYOUTS as ALL
from builders_voc import voc_page
from builders_yolo import put_labels, put_yaml, yolo_line
from qskd.data.sources import open_source
from qskd.errors import QskdError

pytestmark = pytest.mark.timeout(60)

JUNK: list[Any] = [
    None,
    True,
    "",
    "x",
    "\ud800",
    "\0",
    "../a.jpg",
    "/etc/passwd",
    "C:\\a.jpg",
    "a" * 5000,
    [],
    {},
    [[]],
]
JUNK += [
    -1,
    0,
    1,
    0.5,
    2**31,
    2**63,
    2**64,
    10**400,
    1e308,
    -1e308,
    1e-320,
    float("nan"),
    float("inf"),
    {"a": {"b": []}},
]
JUNK += [
    [1, 2],
    [1, 2, 3, "4"],
    [0, 0, -5, -5],
    [9, 9, 1, 1],
    [1e308] * 4,
    [10**400, 1, 2, 0.5],
    [2**63, 1, 2, 3],
    [[1]] * 4,
]


def judge(folder: Path, format: str, file: Path) -> str:
    """Load a folder one of whose files is damaged; says how that went, or fails."""
    try:
        source = open_source(folder, format)
        indices = [source.load(split) for split in source.splits]
    except QskdError as error:
        message = str(error)
        named = file.name in message or (
            str(folder) in message and re.search(r"holds (no|YOLO)|no split|row \d", message)
        )
        assert named or (format == "hf" and str(folder) in message), message
        assert len(message) < 3000, len(message)
        message.encode(errors="backslashreplace")
        return "refused"
    for index in indices:
        index.fingerprint()
        json.dumps(index.ground_truth())
        for at, record in enumerate(index.images):
            for left, top, right, bottom in index.boxes(at).tolist():
                assert 0 <= left < right <= record.width
                assert 0 <= top < bottom <= record.height
    return "counted" if any(index.problems.counts for index in indices) else "loaded"


# --- damage to bytes, whatever they mean


def _flipped(data: bytes, rng: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    return bytes(spoilt)


def _swapped(data: bytes, rng: random.Random) -> bytes:
    """A word in the place of another."""
    words = re.split(rb"(\s+|[,:<>{}\[\]])", data)
    a, b = rng.randrange(len(words)), rng.randrange(len(words))
    words[a], words[b] = words[b], words[a]
    return b"".join(words)


def _numbered(data: bytes, rng: random.Random) -> bytes:
    """Another number in the place of one."""
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data)) or list(re.finditer(rb"\w+", data))
    chosen = rng.choice(numbers)
    given = rng.choice([b"NaN", b"inf", b"1e308", b"1e999", b"-7", b"0", b"99999999999999999999", b"0x10", b"", b"1_0"])
    return data[: chosen.start()] + given + data[chosen.end() :]


BYTES: dict[str, tuple[int, Callable[[bytes, random.Random], bytes]]] = {
    "cut off": (10, lambda data, rng: data[: rng.randrange(len(data))]),
    "flipped": (12, _flipped),
    "words swapped": (10, _swapped),
    "numbers changed": (14, _numbered),
    "a part twice": (4, lambda data, rng: data[: rng.randrange(len(data))] + data[rng.randrange(len(data)) :]),
    "latin-1": (1, lambda data, rng: data.decode().encode("latin-1", "replace")),
    "cp1252": (1, lambda data, rng: data.decode().encode("cp1252", "replace")),
    "utf-16": (1, lambda data, rng: data.decode().encode("utf-16")),
    "utf-32": (1, lambda data, rng: data.decode().encode("utf-32")),
    "mark of bytes": (1, lambda data, rng: b"\xef\xbb\xbf" + data),
    "ends of windows": (1, lambda data, rng: data.replace(b"\n", b"\r\n").replace(b",", b",\r\n")),
    "empty": (1, lambda data, rng: b""),
    "blank": (1, lambda data, rng: b" \n\t\n"),
    "zeros": (1, lambda data, rng: bytes(len(data))),
    "twice": (1, lambda data, rng: data + data),
    "noise": (2, lambda data, rng: rng.randbytes(500)),
    "deep": (1, lambda data, rng: b"[" * 100_000),
    "open": (1, lambda data, rng: b"<annotation>" * 50_000),
}
CASES = [(kind, number) for kind, (count, _) in BYTES.items() for number in range(count)]


def damaged(data: bytes, kind: str, number: int) -> bytes:
    return BYTES[kind][1](data, random.Random(f"{kind} {number}"))


# --- the readers' files; hf is tried less, since its library takes a tenth of a second a try


def _coco(folder: Path) -> Path:
    put_images(folder / "images", "train")
    return put(folder / "annotations" / "instances_train.json", json.dumps(coco("train"), ensure_ascii=False))


def _label(folder: Path) -> Path:
    put_images(folder / "images", "train")
    put_labels(folder / "labels", "train")
    put_yaml(folder / "data.yaml", train="images")
    return folder / "labels" / "a.txt"


def _description(folder: Path) -> Path:
    _label(folder)
    return folder / "data.yaml"


def _page(folder: Path) -> Path:
    ALL["voc-devkit's year"].write(folder)
    return folder / "VOCdevkit" / "VOC2012" / "Annotations" / "größe 猫.xml"


def _set(folder: Path) -> Path:
    _page(folder)
    return folder / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "train.txt"


def _metadata(folder: Path) -> Path:
    ALL["hf-image folder without splits"].write(folder)
    return folder / "metadata.jsonl"


FILES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "coco": ("coco", _coco),
    "label": ("yolo", _label),
    "description": ("yolo", _description),
    "page": ("voc", _page),
    "set": ("voc", _set),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path, Path, bytes]]:
    """Of each kind of file: format, folder, file and its sound content."""
    made = {}
    for name, (format, write) in (FILES | {"metadata": ("hf", _metadata)}).items():
        folder = tmp_path_factory.mktemp(name)
        file = write(folder)
        made[name] = (format, folder, file, file.read_bytes())
    return made


Places = dict[str, tuple[str, Path, Path, bytes]]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(("damage", "number"), CASES, ids=[f"{kind}-{number}" for kind, number in CASES])
def test_damaged_bytes_are_read_or_refused(places: Places, kind: str, damage: str, number: int) -> None:
    format, folder, file, sound = places[kind]
    content = damaged(sound, damage, number)
    if content.startswith((b"[" * 9, b"<annotation>" * 9)) and kind == "set":
        return  # a name of that length is tested elsewhere
    file.write_bytes(content)
    try:
        assert judge(folder, format, file)
    finally:
        file.write_bytes(sound)


@pytest.mark.slow
@pytest.mark.parametrize("damage", BYTES)
def test_damaged_metadata_are_read_or_refused(places: Places, damage: str, tmp_path: Path) -> None:
    format, folder, file, sound = places["metadata"]
    copied = tmp_path / "data"
    shutil.copytree(folder, copied)
    (copied / file.name).write_bytes(damaged(sound, damage, 0))
    assert judge(copied, format, copied / file.name)


# --- damage to COCO's meaning


def _paths(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a file something stands."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from _paths(value, (*above, key))


SOUND = coco("train")
PATHS = list(_paths(SOUND))


def spoilt(seed: int) -> Any:
    """A COCO file with something dropped, renamed, repeated or replaced."""
    rng = random.Random(seed)
    content = copy.deepcopy(SOUND)
    for _ in range(rng.choice([1, 1, 1, 3])):
        path = rng.choice(PATHS)
        place: Any = content
        try:
            for key in path[:-1]:
                place = place[key]
            value = place[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # gone, with what was spoilt before
        what = rng.choice(["drop", "rename", "repeat", "move", "move", "junk", "junk", "junk"])
        if what in ("drop", "rename"):
            del place[path[-1]]
        if what == "rename" and isinstance(place, dict):
            place[f"{path[-1]}s"] = value
        if what == "repeat" and isinstance(place, list):
            place.insert(0, copy.deepcopy(value))
        if what == "move" and isinstance(value, int):
            place[path[-1]] = value * rng.choice([-1, 0, 10])
        if what == "junk":
            place[path[-1]] = rng.choice(JUNK)
    return content


@pytest.mark.parametrize("seed", range(200))
def test_a_spoilt_coco_file_is_read_or_refused(places: Places, seed: int) -> None:
    format, folder, file, sound = places["coco"]
    file.write_text(json.dumps(spoilt(seed)))
    try:
        assert judge(folder, format, file)
    finally:
        file.write_bytes(sound)


def test_the_corpus_holds_all_that_can_happen(places: Places) -> None:
    format, folder, file, sound = places["coco"]
    went = set()
    for seed in range(200):
        file.write_text(json.dumps(spoilt(seed)))
        went.add(judge(folder, format, file))
    file.write_bytes(sound)
    assert went == {"refused", "counted", "loaded"}
    assert len(FILES) * len(CASES) + len(BYTES) + 200 >= 500


# --- whatever hypothesis thinks of

profile = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
numbers = st.one_of(
    st.floats(), st.floats(-0.5, 1.5), st.integers(-3, 5), st.sampled_from([1e308, -0.0, 5e-324, 2**64, "x", ""])
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@profile
@given(rows=st.lists(st.lists(numbers, max_size=9), max_size=6), gap=st.sampled_from([" ", "\t", "  ", ",", "\u2003"]))
def test_any_label_file_is_read_or_refused(places: Places, rows: list[list[Any]], gap: str) -> None:
    format, folder, file, sound = places["label"]
    file.write_text("\n".join(gap.join(map(str, row)) for row in rows), encoding="utf-8")
    assert judge(folder, format, file)
    file.write_bytes(sound)


@profile
@given(path=st.sampled_from(PATHS), value=values)
def test_any_value_in_a_coco_file_is_read_or_refused(places: Places, path: tuple[Any, ...], value: Any) -> None:
    format, folder, file, sound = places["coco"]
    content = copy.deepcopy(SOUND)
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(content))
    assert judge(folder, format, file)
    file.write_bytes(sound)


@profile
@given(
    corners=st.lists(numbers, min_size=4, max_size=4), sides=st.lists(numbers, min_size=2, max_size=2), text=st.text()
)
def test_any_page_is_read_or_refused(places: Places, corners: list[Any], sides: list[Any], text: str) -> None:
    format, folder, file, sound = places["page"]
    page = voc_page(PICTURES["train"][3], size=f"<size><width>{sides[0]}</width><height>{sides[1]}</height></size>")
    box = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    entry = f"<object><name>{text}</name><bndbox>{box}</bndbox></object></annotation>"
    file.write_text(page.replace("</annotation>", entry), encoding="utf-8", errors="replace")
    assert judge(folder, format, file)
    file.write_bytes(sound)


@profile
@given(key=st.sampled_from(["train", "val", "names", "nc", "path", "kpt_shape"]), value=values | st.text())
def test_any_description_is_read_or_refused(places: Places, key: str, value: Any) -> None:
    format, folder, file, sound = places["description"]
    settings_ = {"train": "images", "names": list(CLASSES), "nc": 3} | {key: value}
    file.write_text(json.dumps(settings_), encoding="utf-8")  # JSON is YAML, nearly
    assert judge(folder, format, file)
    file.write_text(
        "\n".join(f"{name}: {value}" for name, value in settings_.items()), encoding="utf-8", errors="replace"
    )
    assert judge(folder, format, file)
    file.write_bytes(sound)


def test_the_sound_files_are_read(places: Places) -> None:
    assert [judge(folder, format, file) for format, folder, file, _ in places.values()] == ["loaded"] * len(places)
    assert yolo_line((0, 0, 0, 32, 32), PICTURES["train"][0]) == "0 0.25 0.5 0.5 1.0"
