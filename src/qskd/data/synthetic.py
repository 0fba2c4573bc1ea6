"""Detection scenes that we draw ourselves: free of licences, downloads and label errors.

Shapes of several classes lie on textured, cluttered grounds, partly hidden by one another. A box is tight
around what can be seen of its object; nothing is drawn of which less than 30% could be seen, so every shape
has a label. A scene depends on (seed, split, position) only.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from qskd.data.shapes import EASY, HARD, Colour, Outline, Pose, Surface, clouds, coverage, surface
from qskd.errors import ConfigError

Difficulty = Literal["easy", "hard"]
Split = Literal["train", "val"]

_SEEN_AT_LEAST = 0.3  # of an object's pixels
_FEWEST_PIXELS = 6  # of an object, so that it has a shape at all
_SMALLEST_IMAGE = 32  # pixels; shapes of a tenth of it are 3 pixels wide
_TRIES = 6  # places tried for an object before it is left out
_NOBODY = -1


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes scenes easy or hard. Lengths are fractions of the image's side."""

    outlines: Mapping[str, Outline]
    most_objects: int
    empty: float  # share of images without objects
    diameters: tuple[float, float]
    flatness: float  # largest ratio of a shape's sides
    contrast: float  # least distance of an object's colour to the ground's, 0..255
    texture: float  # depth of the objects' textures, 0..255
    clutter: int  # most lines and smears
    noise: float  # standard deviation over the whole image, 0..255


RECIPES: Mapping[Difficulty, Recipe] = {
    "easy": Recipe(EASY, 6, 0.04, (0.14, 0.5), 1.3, 70, 32, 4, 4),
    "hard": Recipe(HARD, 8, 0.04, (0.1, 0.4), 1.6, 40, 48, 9, 9),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """One drawn image of H x W pixels and its N objects."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    labels: NDArray[np.int64]  # [N]
    boxes: NDArray[np.int64]  # [N, 4] left, top, width, height in pixels, tight around what can be seen
    owner: NDArray[np.int16]  # [H, W] which object is seen in a pixel, -1 for none


def class_names(difficulty: Difficulty) -> tuple[str, ...]:
    """The classes of scenes, in the order of their labels."""
    return tuple(_recipe(difficulty).outlines)


def draw_scene(
    index: int, *, split: Split = "train", size: int = 128, seed: int = 0, difficulty: Difficulty = "easy"
) -> Scene:
    """Draw one scene of ``size`` x ``size`` pixels; the same arguments give the same scene."""
    recipe = _recipe(difficulty)
    rng = np.random.default_rng((seed, ("train", "val").index(split), index))
    ground = _base_colour(rng)
    canvas = _ground(size, ground, recipe, rng)
    owner = np.full((size, size), _NOBODY, dtype=np.int16)
    labels: list[int] = []
    totals: list[int] = []
    wanted = 0 if rng.random() < recipe.empty else int(rng.integers(1, recipe.most_objects + 1))
    for _ in range(wanted):
        label = int(rng.integers(len(recipe.outlines)))
        placed = _place(list(recipe.outlines.values())[label], owner, totals, recipe, rng)
        if placed is not None:
            covered, left, top, total = placed
            colour = _object_colour(ground, recipe, rng)
            painted = surface(covered.shape[0], covered.shape[1], colour, rng.uniform(0.3, 1) * recipe.texture, rng)
            part = (slice(top, top + covered.shape[0]), slice(left, left + covered.shape[1]))
            canvas[part] += covered[:, :, None] * (painted - canvas[part])
            owner[part][covered >= 0.5] = len(labels)
            labels.append(label)
            totals.append(total)
    canvas += clouds(size, size, rng, cells=3)[:, :, None] * np.float32(rng.uniform(0, 25))  # uneven light
    canvas += rng.normal(0, recipe.noise, canvas.shape).astype(np.float32)
    pixels = canvas.clip(0, 255).astype(np.uint8)
    return Scene(pixels, np.array(labels, dtype=np.int64), seen_boxes(owner, len(labels)), owner)


def seen_boxes(owner: NDArray[np.int16], count: int) -> NDArray[np.int64]:
    """[N, 4] (left, top, width, height): the pixels of the objects 0..count-1 in an [H, W] map of owners."""
    boxes = np.zeros((count, 4), dtype=np.int64)
    for number in range(count):
        seen = owner == number
        columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
        boxes[number] = columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1
    return boxes


def draw_dataset(
    folder: Path,
    *,
    train: int,
    val: int,
    size: int = 128,
    seed: int = 0,
    difficulty: Difficulty = "easy",
) -> None:
    """Write scenes in COCO's layout: ``images/{train,val}/000001.jpg`` and ``annotations/instances_*.json``.

    Args:
        folder: made if absent; files of the same names are replaced.
        train: number of images to learn from.
        val: number of images to be scored on.
        size: side of the square images in pixels, >= 32.
        seed: >= 0; another seed gives other scenes of the same kind.
        difficulty: "hard" has more and more similar classes, smaller and more objects, more clutter.

    Raises:
        ConfigError: a number is out of range, or the difficulty unknown.
    """
    _recipe(difficulty)
    if train < 0 or val < 0 or size < _SMALLEST_IMAGE or seed < 0:
        raise ConfigError(
            f"Scenes: train={train}, val={val}, size={size}, seed={seed}; expected numbers of images >= 0, a "
            f"size of at least {_SMALLEST_IMAGE} pixels and a seed >= 0."
        )
    counts: dict[Split, int] = {"train": train, "val": val}
    for split, count in counts.items():
        _write_split(Path(folder), split, count, size, seed, difficulty)


def _write_split(folder: Path, split: Split, count: int, size: int, seed: int, difficulty: Difficulty) -> None:
    images, annotations = folder / "images" / split, folder / "annotations"
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "info": {
            "description": f"qskd drawn scenes, {difficulty}",
            "version": "1",
            "split": split,
            "size": size,
            "seed": seed,
        },
        "licenses": [],
        "categories": [
            {"id": number, "name": name, "supercategory": "shape"}
            for number, name in enumerate(class_names(difficulty), start=1)
        ],
        "images": [],
        "annotations": [],
    }
    for index in range(count):
        scene = draw_scene(index, split=split, size=size, seed=seed, difficulty=difficulty)
        name = f"{index + 1:06d}.jpg"
        # Colours are not subsampled: thin coloured stripes would smear.
        Image.fromarray(scene.pixels).save(images / name, quality=95, subsampling=0)
        content["images"].append({"id": index + 1, "file_name": name, "height": size, "width": size})
        content["annotations"].extend(_entries(scene, index + 1, len(content["annotations"]) + 1))
    (annotations / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _entries(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    areas = np.bincount(scene.owner[scene.owner >= 0], minlength=len(scene.labels)).tolist()
    rows = zip(scene.labels.tolist(), scene.boxes.tolist(), areas, strict=True)
    return [
        {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": box,
            "area": area,
            "iscrowd": 0,
            "segmentation": [],
        }
        for annotation_id, (label, box, area) in enumerate(rows, start=first_id)
    ]


def _recipe(difficulty: Difficulty) -> Recipe:
    if difficulty not in RECIPES:
        raise ConfigError(f"Difficulty is {difficulty!r}; expected one of {', '.join(RECIPES)}.")
    return RECIPES[difficulty]


def _base_colour(rng: np.random.Generator) -> Colour:
    return rng.uniform(30, 225, 3).astype(np.float32)


def _object_colour(ground: Colour, recipe: Recipe, rng: np.random.Generator) -> Colour:
    """A colour that stands out from the ground: the first of several that does, or its opposite."""
    colours = rng.uniform(0, 255, (_TRIES, 3)).astype(np.float32)
    distances = np.abs(colours - ground).max(axis=1)
    far = np.flatnonzero(distances >= recipe.contrast)
    if len(far):
        return colours[far[0]]
    return np.where(ground > 127, ground - recipe.contrast, ground + recipe.contrast).astype(np.float32)


def _ground(size: int, colour: Colour, recipe: Recipe, rng: np.random.Generator) -> Surface:
    """[size, size, 3]: a varied colour with lines and soft smears, none of which looks like a class."""
    canvas = surface(size, size, colour, recipe.texture * 0.5, rng)
    canvas += clouds(size, size, rng)[:, :, None] * rng.uniform(-30, 30, 3).astype(np.float32)
    for _ in range(rng.integers(recipe.clutter + 1)):
        veil = _smear(size, rng) if rng.random() < 0.5 else _line(size, rng)
        canvas += veil[:, :, None] * (rng.uniform(0, 255, 3).astype(np.float32) - canvas)
    return canvas


def _smear(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """[size, size] in 0..0.6: a Gaussian blob without an edge."""
    at = np.arange(size, dtype=np.float32)
    x, y = rng.uniform(0, size, 2)
    wide, high = rng.uniform(0.04, 0.15, 2) * size
    across = np.exp(-(((at - np.float32(x)) / np.float32(wide)) ** 2))
    down = np.exp(-(((at - np.float32(y)) / np.float32(high)) ** 2))
    return np.float32(rng.uniform(0.3, 0.6)) * down[:, None] * across[None, :]


def _line(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """[size, size] in 0..1: a thin broken line through the image."""
    fine = Image.new("L", (2 * size, 2 * size))
    points = [(float(x), float(y)) for x, y in rng.uniform(-0.2, 1.2, (3, 2)) * 2 * size]
    ImageDraw.Draw(fine).line(points, fill=int(rng.integers(120, 256)), width=int(rng.integers(2, 6)))
    return np.asarray(fine.reduce(2), dtype=np.float32) / np.float32(255)


def _place(
    outline: Outline,
    owner: NDArray[np.int16],
    totals: list[int],
    recipe: Recipe,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], int, int, int] | None:
    """Find a place where enough can be seen of the new object and of all that it hides.

    Returns:
        [h, w] coverage of the pixels within the image, (left, top) of its first pixel and the number of
        pixels of the whole object; None if no place was found.
    """
    size = len(owner)
    for _ in range(_TRIES):
        pose = _pose(size, recipe, rng)
        covered, left, top = coverage(outline, pose)
        total = int((covered >= 0.5).sum())
        x, y = max(left, 0), max(top, 0)
        covered = covered[y - top : size - top, x - left : size - left]
        solid = covered >= 0.5
        below = owner[y : y + solid.shape[0], x : x + solid.shape[1]]
        hidden = np.bincount(below[solid] + 1, minlength=len(totals) + 1)[1:]
        seen = np.bincount(owner.ravel() + 1, minlength=len(totals) + 1)[1:]
        fits = total >= _FEWEST_PIXELS and solid.sum() >= 0.6 * total
        if fits and (seen - hidden >= _SEEN_AT_LEAST * np.array(totals)).all():
            return covered, x, y, total
    return None


def _pose(size: int, recipe: Recipe, rng: np.random.Generator) -> Pose:
    smallest, largest = (math.log(diameter) for diameter in recipe.diameters)
    radius = 0.5 * size * math.exp(rng.uniform(smallest, largest))
    x, y = rng.uniform(0.7 * radius, size - 0.7 * radius, 2)
    flatness = math.exp(rng.uniform(-1, 1) * math.log(recipe.flatness))
    return Pose(float(x), float(y), radius, float(rng.uniform(0, 2 * math.pi)), flatness)
