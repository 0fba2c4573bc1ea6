from dataclasses import replace

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from qskd.data.batch import Sample, collate


def sample(height: int, width: int, objects: int, image_id: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    pixels = torch.randint(1, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.arange(objects) + 1
    boxes = torch.rand(objects, 4, generator=generator)
    return Sample(pixels, labels, boxes, image_id, (2 * height, 3 * width))


def test_smaller_images_are_padded_with_zeros_on_the_right_and_at_the_bottom() -> None:
    samples = [sample(5, 9, 2, 7), sample(8, 4, 0, 3)]
    batch = collate(samples)
    assert batch.pixels.shape == (2, 3, 8, 9)
    assert batch.pixels.dtype == torch.float32
    for image, given in zip(batch.pixels, samples, strict=True):
        _, height, width = given.pixels.shape
        torch.testing.assert_close(image[:, :height, :width], given.pixels / 255, atol=1e-7, rtol=1e-6)
        assert image[:, height:].abs().sum() == 0
        assert image[:, :, width:].abs().sum() == 0
    assert batch.content.tolist() == [[5, 9], [8, 4]]
    assert batch.image_ids == (7, 3)
    assert batch.original_sizes == ((10, 27), (16, 12))
    assert batch.is_padded
    torch.testing.assert_close(~batch.is_padding(), batch.pixels[:, 0] > 0)


def test_objects_are_padded_to_the_most() -> None:
    samples = [sample(4, 4, 0), sample(4, 5, 3), sample(4, 6, 1)]
    targets = collate(samples).targets
    assert targets.counts == (0, 3, 1)
    assert targets.is_object.sum(dim=1).tolist() == [0, 3, 1]
    assert targets.labels.tolist() == [[0, 0, 0], [1, 2, 3], [1, 0, 0]]
    torch.testing.assert_close(targets.boxes[1], samples[1].boxes)


@pytest.mark.parametrize(("multiple_of", "expected"), [(1, (33, 65)), (2, (34, 66)), (32, (64, 96)), (64, (64, 128))])
def test_the_batch_is_rounded_up(multiple_of: int, expected: tuple[int, int]) -> None:
    batch = collate([sample(33, 10, 1), sample(3, 65, 1)], multiple_of=multiple_of)
    assert tuple(batch.pixels.shape[2:]) == expected


def test_images_without_objects_make_a_batch() -> None:
    batch = collate([sample(4, 4, 0), sample(4, 4, 0)])
    assert batch.targets.boxes.shape == (2, 0, 4)
    assert batch.targets.total == 0
    assert not batch.is_padded


def test_targets_in_the_form_of_transformers_hold_the_objects_only() -> None:
    first, second = collate([sample(4, 4, 2), sample(4, 4, 0)]).targets.as_huggingface()
    assert first["class_labels"].tolist() == [1, 2]
    assert second["boxes"].shape == (0, 4)


def test_a_loader_pins_every_tensor_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's loader asks what it does not know to do it by itself; without a GPU nothing can be pinned for real."""
    pinned: list[int] = []

    def pin(tensor: torch.Tensor, *_: object) -> torch.Tensor:
        pinned.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    theirs = torch.zeros(3, 8, 12, dtype=torch.uint8)
    batch = collate([replace(sample(4, 6, 2, image_id=7), teacher_pixels=theirs, variation=(0, 3))])
    same = pin_memory(batch)
    own, other = batch.targets, batch.teacher_images
    assert other is not None
    tensors = [batch.pixels, batch.content, own.labels, own.boxes, own.is_object, other.pixels, other.content]
    assert sorted(pinned) == sorted(tensor.data_ptr() for tensor in tensors)
    assert (same.image_ids, same.variations, same.padded, same.targets.counts) == ((7,), ((0, 3),), False, (2,))
