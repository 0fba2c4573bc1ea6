import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from builders_data import annotation, coco_content, write_coco
from qskd.data.batch import Sample, collate
from qskd.data.dataset import DetectionDataset
from qskd.data.formats.coco import load_coco
from qskd.data.transforms import Augmentation, ImageSize, build_transform
from qskd.errors import DataError

SIZE = ImageSize(square=24)


def varied(folder: Path, seed: int = 0) -> DetectionDataset:
    index = load_coco(*write_coco(folder))
    return DetectionDataset(index, build_transform(SIZE, train=True, augment=Augmentation()), seed)


def same(a: Sample, b: Sample) -> bool:
    return (
        torch.equal(a.pixels, b.pixels)
        and torch.equal(a.boxes, b.boxes)
        and torch.equal(a.labels, b.labels)
        and a.image_id == b.image_id
    )


def test_a_sample_is_what_the_file_says(tmp_path: Path) -> None:
    index = load_coco(*write_coco(tmp_path))
    sample = DetectionDataset(index, build_transform(ImageSize(square=60), train=False))[1]
    assert sample.pixels.shape == (3, 60, 60)
    assert sample.pixels.dtype == torch.uint8
    assert sample.image_id == 5
    assert sample.original_size == (30, 40)
    assert sample.labels.tolist() == [2, 0]
    assert sample.labels.dtype == torch.long
    assert sample.boxes.dtype == torch.float32
    # [1, 2, 10, 20] of 40 x 30: centre (6, 12), so 6/40, 12/30, 10/40, 20/30
    torch.testing.assert_close(sample.boxes[0], torch.tensor([0.15, 0.4, 0.25, 2 / 3]))


def test_an_image_without_objects_is_a_sample(tmp_path: Path) -> None:
    sample = varied(tmp_path)[2]
    assert sample.boxes.shape == (0, 4)
    assert sample.labels.shape == (0,)


def test_the_same_seed_epoch_and_position_give_the_same_sample(tmp_path: Path) -> None:
    first, second = varied(tmp_path), varied(tmp_path)
    _ = [first[i] for i in (2, 0, 1, 1)]  # what was read before does not matter
    torch.manual_seed(5)
    np.random.seed(5)
    assert all(same(first[i], second[i]) for i in range(3))


def test_reading_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    dataset = varied(tmp_path)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    _ = dataset[0]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("what", ["seed", "epoch", "position"])
def test_other_seeds_epochs_and_positions_give_other_augmentations(tmp_path: Path, what: str) -> None:
    content = coco_content()
    content["images"] = [{"id": n, "file_name": "a.png", "height": 30, "width": 40} for n in range(1, 9)]
    content["annotations"] = []
    index = load_coco(*write_coco(tmp_path, content))
    always = build_transform(SIZE, train=True, augment=Augmentation(crop=1, zoom_out=0))

    def read(seed: int, epoch: int, position: int) -> torch.Tensor:
        dataset = DetectionDataset(index, always, seed)
        dataset.set_epoch(epoch)
        return dataset[position].pixels

    places = {"seed": [(n, 0, 0) for n in range(8)], "epoch": [(0, n, 0) for n in range(8)]}
    images = [read(*place) for place in places.get(what, [(0, 0, n) for n in range(8)])]
    assert len({image.numpy().tobytes() for image in images}) == 8


def test_an_epoch_can_be_read_again(tmp_path: Path) -> None:
    dataset = varied(tmp_path)
    dataset.set_epoch(3)
    expected = dataset[0]
    dataset.set_epoch(4)
    dataset.set_epoch(3)
    assert dataset.epoch == 3
    assert same(dataset[0], expected)


def test_a_pickled_dataset_reads_the_same(tmp_path: Path) -> None:
    dataset = varied(tmp_path)
    dataset.set_epoch(2)
    copy = pickle.loads(pickle.dumps(dataset))
    assert same(copy[1], dataset[1])


def test_workers_of_any_number_give_the_same_batches(tmp_path: Path) -> None:
    dataset = varied(tmp_path)
    alone = list(DataLoader(dataset, batch_size=2, collate_fn=collate))
    shared = list(DataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=2))
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.targets.boxes, b.targets.boxes)
        assert a.image_ids == b.image_ids


def test_workers_that_outlive_an_epoch_see_it_change(tmp_path: Path) -> None:
    dataset = varied(tmp_path)
    loader = DataLoader(dataset, batch_size=3, collate_fn=collate, num_workers=1, persistent_workers=True)
    for epoch in (0, 1, 5):
        dataset.set_epoch(epoch)
        (batch,) = list(loader)
        assert torch.equal(batch.pixels, collate([dataset[i] for i in range(3)]).pixels)


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches(tmp_path: Path) -> None:
    dataset = varied(tmp_path)
    loader = DataLoader(dataset, batch_size=3, collate_fn=collate, num_workers=1, multiprocessing_context="spawn")
    (batch,) = list(loader)
    assert torch.equal(batch.pixels, collate([dataset[i] for i in range(3)]).pixels)


@pytest.mark.parametrize("fraction", [1, 2, 4, 8])
def test_boxes_fit_a_jpeg_that_was_decoded_smaller(tmp_path: Path, fraction: int) -> None:
    _, images = write_coco(tmp_path)
    picture = np.zeros((333, 499, 3), dtype=np.uint8)
    picture[80:240, 160:320] = 255
    Image.fromarray(picture).save(images / "big.jpg", quality=95)
    content = {
        "images": [{"id": 1, "file_name": "big.jpg", "height": 333, "width": 499}],
        "annotations": [annotation(1, 1, 3, [160, 80, 160, 160])],
        "categories": [{"id": 3, "name": "cat"}],
    }
    index = load_coco(*write_coco(tmp_path, content))
    transform = build_transform(ImageSize(square=40), train=False)
    dataset = DetectionDataset(index, transform, decode_at_least=333 // fraction)
    sample = dataset[0]
    expected = DetectionDataset(index, transform)[0]
    assert (sample.pixels.int() - expected.pixels.int()).abs().float().mean() < 6
    torch.testing.assert_close(sample.boxes, expected.boxes, atol=0.01, rtol=0)
    seen = (sample.pixels[0] > 127).nonzero()
    low, high = seen.min(dim=0).values, seen.max(dim=0).values + 1
    centre = (low + high).flip(0) / 80
    torch.testing.assert_close(sample.boxes[0, :2], centre, atol=0.02, rtol=0)


def test_a_damaged_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    dataset = varied(tmp_path)
    (tmp_path / "images" / "b.png").write_bytes(b"\x89PNG")
    assert dataset[0].image_id == 11
    with pytest.raises(DataError, match=r"b\.png"):
        dataset[1]
