"""The files of a cache: whole or not there, and read with suspicion."""

import errno
import json
import pathlib
from dataclasses import replace

import pytest
import torch

from qskd.errors import CheckpointError, ConfigError, SavingError
from qskd.lessons.cache import CacheContent, TeacherCache, write_index
from qskd.lessons.claim import claimed
from qskd.lessons.facts import TeacherFacts
from qskd.lessons.shards import is_whole, sealed, write_shard

FACTS = TeacherFacts("detr", frozenset(), 1, 2, (4,), (32,), {0: "cat"})


def records(*positions):
    return {position: {"boxes": torch.full((1, 2, 4), float(position))} for position in positions}


@pytest.fixture
def folder(tmp_path):
    """Three images in shards of two, one epoch."""
    content = CacheContent({"seed": 1}, {}, frozenset(), FACTS, {}, {}, 3, 2, ("boxes",), (bytes([0, 9, 250]),))
    content.save(tmp_path)
    write_shard(tmp_path, "epoch000-00000", records(0, 1))
    assert write_index(tmp_path, content, 1) == 0
    write_shard(tmp_path, "epoch000-00001", records(2))
    assert write_index(tmp_path, content, 1) == 1
    return tmp_path


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_records_come_back_as_they_were(folder):
    cache = TeacherCache.open(folder)
    assert [float(cache.lessons.read(0, position)["boxes"][0, 0, 0]) for position in range(3)] == [0.0, 1.0, 2.0]
    assert cache.size == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["cache.json", "index.json"])
@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"version": 2}'])
def test_a_damaged_description_is_named(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged.*qskd cache"):
        TeacherCache.open(folder)


def test_a_cache_of_another_version_is_to_be_made_again(folder):
    edit(folder / "cache.json", version=1)
    with pytest.raises(CheckpointError, match=r"another version of qskd.*in another folder"):
        TeacherCache.open(folder)


@pytest.mark.parametrize(
    ("key", "asked", "advice"),
    [
        ("image size", [64, 96], "give --image_size 64 without --max_image_size"),
        ("image size", [96], "give --image_size 64"),
        ("teacher image size", [96], "give --teacher_image_size 64 --teacher_max_image_size 128"),
    ],
)
def test_sizes_that_differ_are_advised_upon_as_they_would_be_given(folder, key, asked, advice):
    content = replace(CacheContent.load(folder), key={"image size": [64], "teacher image size": [64, 128]})
    with pytest.raises(CheckpointError, match=rf"; {advice}\n"):
        content.check(folder, {key: asked}, ())


def test_images_that_look_otherwise_are_refused_and_other_rounding_is_not(folder):
    content = CacheContent.load(folder)
    content.check_pixels(folder, [bytes([1, 10, 248])])
    for other in ([bytes([0, 9, 240])], [bytes([0, 9])], []):
        with pytest.raises(CheckpointError, match="of images that look otherwise"):
            content.check_pixels(folder, other)


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"epochs": 10**15}, {"shards": {}}, {"epochs": None}])
def test_an_index_that_does_not_fit_is_damaged(folder, changes):
    edit(folder / "index.json", **changes)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        TeacherCache.open(folder)


@pytest.mark.parametrize("changes", [{"images": 0}, {"images": 10**15}, {"images_per_shard": 0}])
def test_numbers_of_images_that_cannot_be_are_damage(folder, changes):
    edit(folder / "cache.json", **changes)
    with pytest.raises(CheckpointError, match="is damaged"):
        TeacherCache.open(folder)


def test_no_name_leaves_the_folder(folder):
    index = json.loads((folder / "index.json").read_text())
    index["shards"]["../epoch000-00001"] = index["shards"].pop("epoch000-00001")
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        TeacherCache.open(folder)


@pytest.mark.parametrize("content", [b"no tensors", None])
def test_a_sealed_shard_of_something_else_is_named(folder, content):
    if content is None:
        write_shard(folder, "epoch000-00001", {7: {"boxes": torch.zeros(1)}})
    else:
        path = folder / "epoch000-00001.safetensors"
        path.write_bytes(content)
        seal = sealed(path)
        edit(folder / "epoch000-00001.json", bytes=seal.bytes, sha256=seal.sha256)
    write_index(folder, CacheContent.load(folder), 1)
    with pytest.raises(CheckpointError, match=r"epoch000-00001\.safetensors cannot be read"):
        TeacherCache.open(folder).lessons.read(0, 2)


def test_only_what_is_read_is_looked_at(folder):
    path = folder / "epoch000-00000.safetensors"
    content = path.read_bytes()
    one = records(1)[1]["boxes"].numpy().tobytes()
    assert content.count(one) == 1
    path.write_bytes(content.replace(one, one[:-1] + bytes([one[-1] ^ 1])))
    read = TeacherCache.open(folder).lessons.read
    assert float(read(0, 0)["boxes"].max()) == 0.0
    with pytest.raises(CheckpointError, match=r"epoch000-00000\.safetensors is damaged: boxes of image 1.*qskd cache"):
        read(0, 1)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(folder, monkeypatch):
    before = {path.name for path in folder.iterdir()}

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(SavingError, match=r"epoch001-00000\.safetensors cannot be written \(No space left.*go on"):
        write_shard(folder, "epoch001-00000", records(0, 1))
    assert {path.name for path in folder.iterdir()} == before


def test_a_shard_whose_process_was_killed_is_made_again(folder):
    (folder / "epoch000-00001.json").unlink()  # what is done first
    (folder / ".epoch000-00001.safetensors.tmp").write_bytes(b"half")
    assert not is_whole(folder, "epoch000-00001", [2], ["boxes"])
    write_shard(folder, "epoch000-00001", records(2))
    assert is_whole(folder, "epoch000-00001", [2], ["boxes"])
    assert not list(folder.glob(".epoch*"))


def test_one_pass_at_a_time_claims_a_folder(tmp_path):
    with claimed(tmp_path), pytest.raises(ConfigError, match="Another `qskd cache` is writing"), claimed(tmp_path):
        pass
    with claimed(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()  # refused to everybody, whoever runs the tests
    with pytest.raises(ConfigError, match=r"cannot be written to \(Is a directory\)"), claimed(tmp_path):
        pass
