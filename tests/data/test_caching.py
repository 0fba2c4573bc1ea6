"""Caches of decoded images: the same pixels, decoded once."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageColumn
from PIL import Image
from torch.utils.data import DataLoader

import qskd.data.dataset as dataset_module
from builders_formats import put
from qskd.data import caching
from qskd.data.batch import collate
from qskd.data.caching import open_cache
from qskd.data.dataset import DetectionDataset
from qskd.data.sources import open_source
from qskd.data.transforms import ImageSize, build_transform
from qskd.errors import ConfigError


def dataset(scenes: Path, folder: Path, kind: str) -> DetectionDataset:
    index = open_source(scenes).load("train")
    transform = build_transform(ImageSize(square=48), train=True)
    return DetectionDataset(
        index,
        transform,
        3,
        decode_at_least=40,
        cache=open_cache(kind, index, 40, folder),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_every_epoch_sees_the_same_pixels_as_without_and_decodes_once(scenes, tmp_path, monkeypatch, kind):
    read, counts = dataset_module.read_image, Counter()

    def counted(record, at_least=None):
        counts[record.id] += 1
        return read(record, at_least=at_least)

    monkeypatch.setattr(dataset_module, "read_image", counted)
    plain, kept = dataset(scenes, tmp_path, "none"), dataset(scenes, tmp_path, kind)
    for epoch in range(3):
        plain.set_epoch(epoch)
        kept.set_epoch(epoch)
        for position in range(len(plain)):
            one, other = plain[position], kept[position]
            assert torch.equal(one.pixels, other.pixels)
            assert torch.equal(one.boxes, other.boxes)
    assert set(counts.values()) == {3 + 1}


def test_a_disk_cache_is_shared_and_mends_cut_files(scenes, tmp_path):
    first = dataset(scenes, tmp_path, "disk")
    expected = [first[position].pixels for position in range(len(first))]
    files = sorted(tmp_path.rglob("*.npy"))
    assert len(files) == len(first)
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].write_bytes(b"")
    again = dataset(scenes, tmp_path, "disk")
    assert all(torch.equal(again[position].pixels, pixels) for position, pixels in enumerate(expected))
    assert sorted(tmp_path.rglob("*.npy")) == files
    loader = DataLoader(again, 4, num_workers=2, collate_fn=collate)
    assert sum(len(batch) for batch in loader) == len(first)


def test_other_data_or_sizes_have_other_folders(scenes, tmp_path):
    train, val = (open_source(scenes).load(split) for split in ("train", "val"))
    folders = {
        open_cache("disk", index, decoded, tmp_path).folder for index in (train, val) for decoded in (None, 40, 80)
    }
    assert len(folders) == 6


def test_changed_files_are_read_anew(scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data")
    first = dataset(data, tmp_path / "cache", "disk")
    before = first[0].pixels
    path = first.index.images[0].path
    Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
    assert not torch.equal(dataset(data, tmp_path / "cache", "disk")[0].pixels, before)


def hub_folder(folder: Path, seed: int, *, in_the_table: bool) -> Path:
    """Two rows with the same boxes whatever the seed; their images are bytes of the table, or files beside it."""
    noise = np.random.default_rng(seed)
    objects = {"bbox": [[1.0, 2.0, 30.0, 20.0]], "category": ["x"]}
    folder.mkdir()
    for name in ("0.png", "1.png"):
        Image.fromarray(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / name)
    if not in_the_table:
        rows = [json.dumps({"file_name": name, "objects": objects}) for name in ("0.png", "1.png")]
        put(folder / "metadata.jsonl", "\n".join(rows))
        return folder
    cells = [{"bytes": (folder / name).read_bytes(), "path": None} for name in ("0.png", "1.png")]
    table = Dataset.from_list([{"image": cell, "objects": objects} for cell in cells])
    table.cast_column("image", ImageColumn()).save_to_disk(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize("in_the_table", [True, False])
def test_hub_data_with_the_same_boxes_and_other_pixels_has_a_folder_of_its_own(tmp_path, in_the_table):
    folders = [hub_folder(tmp_path / f"{seed}", seed, in_the_table=in_the_table) for seed in (1, 2)]
    first, second = (dataset(folder, tmp_path / "cache", "disk") for folder in folders)
    assert first.index.fingerprint() == second.index.fingerprint()
    assert not torch.equal(first[0].pixels, second[0].pixels)
    plain = dataset(folders[1], tmp_path, "none")
    assert all(torch.equal(second[position].pixels, plain[position].pixels) for position in range(2))
    assert dataset(folders[0], tmp_path / "cache", "disk").cache.folder == first.cache.folder


def test_a_changed_image_of_hub_data_is_read_anew(tmp_path):
    folder = hub_folder(tmp_path / "a", 1, in_the_table=False)
    before = dataset(folder, tmp_path / "cache", "disk")[1].pixels
    path = folder / "1.png"
    Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
    assert not torch.equal(dataset(folder, tmp_path / "cache", "disk")[1].pixels, before)


def test_images_that_do_not_fit_into_memory_are_refused(scenes, tmp_path, monkeypatch):
    index = open_source(scenes).load("train")
    size = int((index.images.sizes.prod(axis=1) * 3).sum())
    monkeypatch.setattr(caching, "_free_memory", lambda: 5 * size)
    assert open_cache("memory", index, None, None, copies=2) is not None
    with pytest.raises(ConfigError, match="of 3 loading processes"):
        open_cache("memory", index, None, None, copies=3)
    monkeypatch.setattr(caching, "_free_memory", lambda: 1000)
    with pytest.raises(ConfigError, match="--cache_images disk"):
        open_cache("memory", open_source(scenes).load("train"), None, None)
    assert open_cache("none", open_source(scenes).load("train"), None, None) is None


def test_a_disk_that_takes_no_more_is_no_end(scenes, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    kept = dataset(scenes, tmp_path, "disk")
    monkeypatch.setattr(caching.np, "save", full)
    plain = dataset(scenes, tmp_path, "none")
    assert torch.equal(kept[0].pixels, plain[0].pixels)
    assert not list(tmp_path.rglob(".*.npy"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--cache_dir"):
        open_cache("disk", open_source(scenes).load("train"), None, tmp_path / "file")
