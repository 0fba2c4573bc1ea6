import colorsys
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import DetrImageProcessor, RTDetrImageProcessor
from transformers.image_transforms import get_size_with_aspect_ratio

from qskd.data.transforms import (
    Augmentation,
    ImageSize,
    Placement,
    build_transform,
    colour_matrix,
    crop_window,
    recoloured,
    zoomed_out,
)
from qskd.errors import ConfigError

SQUARE, EDGES = ImageSize(square=96), ImageSize(shortest_edge=80, longest_edge=120)


def drawn(height: int, width: int, corners: tuple[int, int, int, int]) -> Tensor:
    """[3, h, w] uint8: black with one white rectangle (left, top, right, bottom), channels last in memory."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    left, top, right, bottom = corners
    image[top:bottom, left:right] = 255
    return torch.from_numpy(image).permute(2, 0, 1)


def found(pixels: Tensor) -> list[float]:
    """Corners in pixels of the white rectangle; an edge's pixels count by how white they are.

    Looks at pixel values only, so it is independent of any geometry of ours.
    """
    white = np.where(is_fill(pixels)[0], 0, pixels.numpy().astype(np.float64).mean(axis=0) / 255)
    columns, rows = white.max(axis=0), white.max(axis=1)
    edges = []
    for profile in (columns, rows):
        inside = np.flatnonzero(profile >= 0.5)
        low, high = inside[0], inside[-1] + 1
        before = profile[low - 1] if low > 0 else 0
        after = profile[high] if high < len(profile) else 0
        edges.append((low - before + 1 - profile[low], high + after - 1 + profile[high - 1]))
    (left, right), (top, bottom) = edges
    return [left, top, right, bottom]


def as_corners(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    x, y, w, h = boxes.T
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1) * [width, height, width, height]


def transform_one(size: ImageSize, augment: Augmentation, image: Tensor, corners: Any, seed: int) -> Any:
    objects = (np.array([4]), np.array([corners], dtype=np.float64))
    transform = build_transform(size, train=True, augment=augment)
    return transform(image, objects, np.random.default_rng(seed))


ONLY = {
    "resize": Augmentation.none(),
    "flip": dataclasses.replace(Augmentation.none(), flip=1),
    "crop": dataclasses.replace(Augmentation.none(), crop=1),
    "zoom out": dataclasses.replace(Augmentation.none(), zoom_out=1),
    "all": Augmentation(flip=0.5, crop=0.5, zoom_out=0.5, photometric=0),
}


@pytest.mark.parametrize("size", [SQUARE, EDGES], ids=["square", "edges"])
@pytest.mark.parametrize("name", ONLY)
def test_a_box_follows_the_rectangle_that_is_seen_in_the_pixels(name: str, size: ImageSize) -> None:
    corners = (40, 30, 90, 100)
    for seed in range(25):
        pixels, (labels, boxes) = transform_one(size, ONLY[name], drawn(150, 200, corners), corners, seed)
        assert labels.tolist() == [4]
        np.testing.assert_allclose(as_corners(boxes, *pixels.shape[1:])[0], found(pixels), atol=0.6)


def is_fill(pixels: Tensor) -> Tensor:
    """[1, h, w]: the grey that zoomed-out images lie on."""
    return (pixels == torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]).all(dim=0, keepdim=True)


def test_a_flip_by_hand() -> None:
    # 10 x 4 pixels, a box from 1 to 3: mirrored from 7 to 9, centre .8, width .2
    pixels, (_, boxes) = transform_one(
        ImageSize(shortest_edge=4, longest_edge=10), ONLY["flip"], drawn(4, 10, (1, 1, 3, 2)), (1, 1, 3, 2), 0
    )
    np.testing.assert_allclose(boxes, [[0.8, 0.375, 0.2, 0.25]])
    np.testing.assert_array_equal(pixels[0, 1].numpy(), [0] * 7 + [255, 255, 0])


def test_a_placement_by_hand() -> None:
    # The left half (8 x 8 of 16 x 8) goes, halved, to (2, 1) of an output of 8 x 10 (height x width).
    place = Placement(source=(0, 0, 8, 8), target=(2, 1, 4, 4), output=(8, 10))
    objects = (np.array([0, 1, 2]), np.array([[0.0, 0, 4, 8], [6, 0, 9, 2], [7, 0, 10, 2]]))
    labels, boxes = place.objects(objects)
    # Box 0: half of the target, x 2..4, y 1..5. Box 1: centre 7.5 is inside, cut at 8: x 5..6, y 1..2.
    # Box 2: centre 8.5 is not inside.
    assert labels.tolist() == [0, 1]
    np.testing.assert_allclose(boxes, [[0.3, 0.375, 0.2, 0.5], [0.55, 0.1875, 0.1, 0.125]])
    flipped = dataclasses.replace(place, is_flipped=True)
    np.testing.assert_allclose(flipped.objects(objects)[1][0], [0.7, 0.375, 0.2, 0.5])
    assert place.pixels(drawn(8, 16, (0, 0, 16, 8)))[:, 1:5, 2:6].min() == 255
    assert is_fill(place.pixels(drawn(8, 16, (0, 0, 16, 8)))).sum() == 8 * 10 - 16


many = st.lists(
    st.tuples(st.floats(0, 199), st.floats(0, 149), st.floats(0.001, 200), st.floats(0.001, 150)), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(boxes=many, seed=st.integers(0, 2**31), size=st.sampled_from([SQUARE, EDGES]))
def test_boxes_stay_inside_and_never_degenerate_and_a_crop_keeps_an_object(
    boxes: list[tuple[float, float, float, float]], seed: int, size: ImageSize
) -> None:
    corners = np.array([[x, y, min(x + w, 200), min(y + h, 150)] for x, y, w, h in boxes]).reshape(-1, 4)
    transform = build_transform(size, train=True, augment=ONLY["all"])
    image = drawn(150, 200, (0, 0, 10, 10))
    pixels, (labels, moved) = transform(image, (np.arange(len(corners)), corners), np.random.default_rng(seed))
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert len(labels) == len(moved)
    assert (len(labels) > 0) == (len(corners) > 0)
    assert (moved[:, 2:] > 1e-7).all()
    low, high = moved[:, :2] - moved[:, 2:] / 2, moved[:, :2] + moved[:, 2:] / 2
    assert (low > -1e-9).all()
    assert (high < 1 + 1e-9).all()


@pytest.mark.parametrize("name", ONLY)
def test_images_without_objects_pass_through(name: str) -> None:
    transform = build_transform(SQUARE, train=True, augment=ONLY[name])
    nothing = (np.zeros(0, dtype=np.int64), np.zeros((0, 4)))
    for seed in range(5):
        pixels, (labels, boxes) = transform(drawn(30, 50, (0, 0, 5, 5)), nothing, np.random.default_rng(seed))
        assert pixels.shape == (3, 96, 96)
        assert labels.shape == (0,)
        assert boxes.shape == (0, 4)


def test_crop_windows_lie_inside_and_keep_area_and_a_centre() -> None:
    corners = np.array([[10.0, 10, 20, 20], [150, 80, 199, 149]])
    for seed in range(200):
        rng = np.random.default_rng(seed)
        left, top, width, height = crop_window(150, 200, corners, 0.3, rng)
        assert 0 <= left <= left + width <= 200
        assert 0 <= top <= top + height <= 150
        assert width * height >= 0.25 * 150 * 200  # rounded, and cut where one side would exceed the image
        centres = (corners[:, :2] + corners[:, 2:]) / 2
        assert any(left < x < left + width and top < y < top + height for x, y in centres)


def test_a_crop_of_the_smallest_image_is_the_image() -> None:
    assert crop_window(1, 1, np.array([[0.0, 0, 1, 1]]), 0.3, np.random.default_rng(0)) == (0, 0, 1, 1)


def test_zoomed_out_images_lie_inside_and_fill_at_least_the_share_of_a_side() -> None:
    for seed in range(100):
        left, top, width, height = zoomed_out((60, 100), 0.5, np.random.default_rng(seed))
        assert 0 <= left <= left + width <= 100
        assert 0 <= top <= top + height <= 60
        assert 50 <= width <= 100
        assert 30 <= height <= 60


def test_evaluation_ignores_augmentation() -> None:
    always = Augmentation(flip=1, crop=0.5, zoom_out=0.5, photometric=1)
    image, corners = drawn(96, 96, (10, 10, 20, 20)), np.array([[10.0, 10, 20, 20]])
    transform = build_transform(SQUARE, train=False, augment=always)
    for seed in range(5):
        pixels, (_, boxes) = transform(image, (np.array([0]), corners), np.random.default_rng(seed))
        assert torch.equal(pixels, image)
        np.testing.assert_allclose(boxes, np.array([[15, 15, 10, 10]]) / 96)


PROCESSORS = {
    "square": (RTDetrImageProcessor(size={"height": 96, "width": 96}), SQUARE),
    "edges": (
        DetrImageProcessor(size={"shortest_edge": 80, "longest_edge": 120}, do_normalize=False, do_pad=False),
        EDGES,
    ),
}


@pytest.mark.parametrize("shape", [(50, 70), (200, 90), (333, 111), (80, 80)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_evaluation_sees_the_pixels_of_the_image_processor(name: str, shape: tuple[int, int]) -> None:
    processor, size = PROCESSORS[name]
    image = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    nothing = (np.zeros(0, dtype=np.int64), np.zeros((0, 4)))
    pixels, _ = build_transform(size, train=False)(
        torch.from_numpy(image).permute(2, 0, 1), nothing, np.random.default_rng(0)
    )
    assert pixels.shape == expected.shape
    torch.testing.assert_close(pixels / 255, expected, atol=1.01 / 255, rtol=0)


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    edges=st.tuples(st.integers(1, 1400), st.integers(1, 1400)),
)
def test_sizes_are_those_of_transformers(height: int, width: int, edges: tuple[int, int]) -> None:
    shortest, longest = sorted(edges)
    expected = get_size_with_aspect_ratio((height, width), shortest, longest)
    got = ImageSize(shortest_edge=shortest, longest_edge=longest).of(height, width)
    assert got == tuple(max(side, 1) for side in expected)


@pytest.mark.parametrize(
    "size",
    [
        {},
        {"square": 0},
        {"square": 5, "shortest_edge": 5, "longest_edge": 6},
        {"shortest_edge": 5},
        {"longest_edge": 5},
        {"shortest_edge": 7, "longest_edge": 6},
        {"shortest_edge": 0, "longest_edge": 6},
    ],
)
def test_a_size_that_says_nothing_or_two_things_is_refused(size: dict[str, int]) -> None:
    said = ", ".join(f"{name} {value}" for name, value in size.items()) or "nothing"
    with pytest.raises(ConfigError, match=f"^Image size is {said}; expected square, or shortest_edge <= longest_edge"):
        ImageSize(**size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.2}, "flip is 1.2"),
        ({"hue": -0.1}, "hue is -0.1"),
        ({"crop": float("nan")}, "crop is nan"),
        ({"crop": 0.7, "zoom_out": 0.5}, "exclude each other"),
        ({"crop_area": 0}, "above 0"),
        ({"zoom_out_side": 0}, "above 0"),
    ],
)
def test_augmentation_out_of_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augmentation(**options)


def strength(**only: float) -> Augmentation:
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    return Augmentation(**{**none, **only})


def apply(matrix: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    return matrix @ np.array([*colour, 1.0])


def test_no_strength_changes_no_colour() -> None:
    matrix = colour_matrix(strength(), np.random.default_rng(0))
    np.testing.assert_allclose(matrix, np.eye(3, 4), atol=1e-12)


def test_brightness_adds_the_same_to_all_channels_and_contrast_pivots_on_mid_grey() -> None:
    rng = np.random.default_rng(1)
    shift = apply(colour_matrix(strength(brightness=0.2), rng), (0.1, 0.5, 0.9)) - [0.1, 0.5, 0.9]
    np.testing.assert_allclose(shift, shift[0])
    assert 0 < abs(shift[0]) <= 0.2
    changed = apply(colour_matrix(strength(contrast=0.3), rng), (0.5, 0.6, 0.2)) - 0.5
    assert changed[0] == pytest.approx(0)
    assert changed[1] / 0.1 == pytest.approx(changed[2] / -0.3)
    assert 0.7 <= changed[1] / 0.1 <= 1.3


@pytest.mark.parametrize("option", ["saturation", "hue"])
def test_saturation_and_hue_keep_greys_and_luma(option: str) -> None:
    matrix = colour_matrix(strength(**{option: 0.4}), np.random.default_rng(2))
    np.testing.assert_allclose(apply(matrix, (0.3, 0.3, 0.3)), 0.3, atol=1e-5)
    before, luma = np.array([0.2, 0.7, 0.4]), np.array([0.299, 0.587, 0.114])
    after = apply(matrix, tuple(before))
    assert luma @ after == pytest.approx(luma @ before, abs=1e-5)
    assert np.abs(after - before).max() > 0.01


def test_hue_turns_as_far_as_asked_and_saturation_not_at_all() -> None:
    before = np.array(colorsys.rgb_to_yiq(0.6, 0.5, 0.4))
    angles = []
    for seed in range(50):
        matrix = colour_matrix(strength(hue=0.05), np.random.default_rng(seed))
        after = np.array(colorsys.rgb_to_yiq(*apply(matrix, (0.6, 0.5, 0.4))))
        angles.append(np.arctan2(after[2], after[1]) - np.arctan2(before[2], before[1]))
    turns = np.abs(np.array(angles)) / (2 * np.pi)
    assert 0.03 < turns.max() < 0.056  # colorsys rounds YIQ's coefficients to two digits


def test_recoloured_pixels_are_the_matrix_product_clipped() -> None:
    pixels = torch.randint(0, 256, (3, 7, 9), dtype=torch.uint8)
    matrix = colour_matrix(Augmentation(brightness=0.4, saturation=0.9), np.random.default_rng(7))
    expected = np.einsum("ij,jhw->ihw", matrix[:, :3], pixels.numpy().astype(np.float64))
    expected = (expected + 255 * matrix[:, 3, None, None]).clip(0, 255)
    assert np.abs(recoloured(pixels, matrix).numpy() - expected).max() <= 1


@pytest.mark.parametrize("side", [20, 200], ids=["reduced", "enlarged"])
def test_the_order_of_resize_and_recolour_hardly_matters(side: int) -> None:
    noise = np.random.default_rng(4).integers(60, 190, (60, 60, 3), dtype=np.uint8)
    image = torch.from_numpy(noise).permute(2, 0, 1)
    matrix = colour_matrix(Augmentation(), np.random.default_rng(5))
    place = Placement((0, 0, 60, 60), (0, 0, side, side), (side, side))
    expected = recoloured(place.pixels(image), matrix).int()
    assert (place.pixels(image, matrix).int() - expected).abs().max() <= 2
