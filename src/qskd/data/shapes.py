"""The shapes and surfaces that drawn scenes are made of.

Outlines live in the square [-1, 1]^2 and touch its inscribed circle: all classes have comparable sizes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float64]
Colour = NDArray[np.float32]  # [3] in 0..255
Surface = NDArray[np.float32]  # [h, w, 3] in 0..255

_FINE = 4  # masks are drawn this many times larger, then averaged: 17 levels of coverage along edges


@dataclass(frozen=True, slots=True)
class Outline:
    """A closed polygon [V, 2] and, for shapes with an opening, the polygon that is cut out."""

    outer: Floats
    hole: Floats | None = None


def _regular(corners: int, radius: float = 1.0, start: float = 0.0) -> Floats:
    angles = start + np.arange(corners) * (2 * math.pi / corners)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> Floats:
    points = np.empty((10, 2))
    points[0::2], points[1::2] = _regular(5), _regular(5, 0.42, math.pi / 5)
    return points


def _cross(half_width: float = 0.3) -> Floats:
    arm = math.sqrt(1 - half_width**2)
    quarter = np.array([[half_width, half_width], [half_width, arm], [-half_width, arm]])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _half_moon() -> Floats:
    outer = np.linspace(math.pi / 2, 3 * math.pi / 2, 24)
    inner = outer[::-1]
    bulge = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    hollow = np.stack([0.35 * np.cos(inner), np.sin(inner)], axis=1)
    return np.concatenate([bulge, hollow]) + np.array([0.35, 0])


def _arrow() -> Floats:
    half = [[1.0, 0.0], [0.1, 0.75], [0.1, 0.3], [-0.95, 0.3]]
    return np.array(half + [[x, -y] for x, y in half[:0:-1]])


EASY: Mapping[str, Outline] = {
    "circle": Outline(_regular(48)),
    "square": Outline(_regular(4, start=math.pi / 4)),
    "triangle": Outline(_regular(3)),
    "star": Outline(_star()),
    "ring": Outline(_regular(48), hole=_regular(48, 0.55)),
    "cross": Outline(_cross()),
}
HARD: Mapping[str, Outline] = {
    **EASY,
    "hexagon": Outline(_regular(6)),
    "octagon": Outline(_regular(8)),
    "half_moon": Outline(_half_moon()),
    "arrow": Outline(_arrow()),
}


@dataclass(frozen=True, slots=True)
class Pose:
    """Where and how a shape lies: centre and radius in pixels, angle in radians, height over width."""

    x: float
    y: float
    radius: float
    angle: float
    flatness: float


def coverage(outline: Outline, pose: Pose) -> tuple[NDArray[np.float32], int, int]:
    """How much of each pixel a shape covers.

    Returns:
        [h, w] in 0..1 over the shape's bounding rectangle, and the (left, top) pixel of that rectangle in the
        image; it may stick out of the image on any side.
    """
    outer = _posed(outline.outer, pose)
    low = np.floor(outer.min(axis=0)).astype(int)
    width, height = (np.ceil(outer.max(axis=0)).astype(int) - low + 1).tolist()
    mask = Image.new("L", (width * _FINE, height * _FINE))
    draw = ImageDraw.Draw(mask)
    draw.polygon(_fine(outer, low), fill=255)
    if outline.hole is not None:
        draw.polygon(_fine(_posed(outline.hole, pose), low), fill=0)
    covered = np.asarray(mask.reduce(_FINE), dtype=np.float32) / np.float32(255)
    return covered, int(low[0]), int(low[1])


def _posed(points: Floats, pose: Pose) -> Floats:
    """[V, 2] in the unit square to pixels of the image; squeezing keeps the area."""
    squeeze = math.sqrt(pose.flatness)
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    turned = (points * [1 / squeeze, squeeze]) @ np.array([[cos, sin], [-sin, cos]])
    return pose.radius * turned + [pose.x, pose.y]


def _fine(points: Floats, low: NDArray[np.int64]) -> list[tuple[float, float]]:
    # Pillow's coordinates name pixel centres, ours the pixels' upper left corners.
    return [(x, y) for x, y in ((points - low) * _FINE - 0.5).tolist()]


def _wave(height: int, width: int, rng: np.random.Generator, period: float) -> NDArray[np.float32]:
    """[h, w] in -1..1: a sine along a random direction, with this many pixels a period."""
    angle, phase = rng.uniform(0, 2 * math.pi, 2)
    step = 2 * math.pi / period
    x = np.arange(width, dtype=np.float32) * np.float32(step * math.cos(angle))
    y = np.arange(height, dtype=np.float32) * np.float32(step * math.sin(angle))
    waves: NDArray[np.float32] = np.sin(x[None, :] + y[:, None] + np.float32(phase))
    return waves


def _plain(height: int, width: int, _rng: np.random.Generator) -> NDArray[np.float32]:
    return np.zeros((height, width), dtype=np.float32)


def _stripes(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    return np.clip(3 * _wave(height, width, rng, rng.uniform(5, 12)), -1, 1)


def _checks(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    period, shift = rng.uniform(6, 14), rng.uniform(0, 14, 2)
    x = np.floor((np.arange(width) + shift[0]) * (2 / period)).astype(int)
    y = np.floor((np.arange(height) + shift[1]) * (2 / period)).astype(int)
    return ((x[None, :] + y[:, None]) % 2 * 2 - 1).astype(np.float32)


def _gradient(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    return _wave(height, width, rng, 3.0 * max(height, width))


def clouds(height: int, width: int, rng: np.random.Generator, cells: int = 5) -> NDArray[np.float32]:
    """[h, w] about -1..1: random values on a coarse grid, joined smoothly."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def _noise(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.uniform(-1, 1, (height, width)).astype(np.float32)


TEXTURES: tuple[Callable[[int, int, np.random.Generator], NDArray[np.float32]], ...] = (
    _plain,
    _stripes,
    _checks,
    _gradient,
    clouds,
    _noise,
)


def surface(height: int, width: int, colour: Colour, depth: float, rng: np.random.Generator) -> Surface:
    """A colour varied by a random texture.

    Args:
        height: pixels.
        width: pixels.
        colour: the mean.
        depth: by how much the texture changes each channel at most, in 0..255.
        rng: where randomness comes from.
    """
    texture = TEXTURES[rng.integers(len(TEXTURES))](height, width, rng)
    other = rng.uniform(0.4, 1, 3).astype(np.float32) * np.float32(depth) * rng.choice([-1, 1])
    return colour + texture[:, :, None] * other.astype(np.float32)
