"""A teacher's queries, their attention and their pairs drawn on an image."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from qskd.losses.attention_guided_feature import resize_sum
from qskd.reporting.pictures import Box, Colour, class_colour, draw_tag
from qskd.reporting.query_scene import Pairs, Scene
from qskd.selection.groups import Role

SIDE = 448  # pixels of a panel's longer side
_FINE = 2  # drawn so many times as large, then reduced: smooth lines
_DARK: Colour = (16, 16, 16)
_PALE: Colour = (225, 225, 225)
_TAGGED = 8  # with more objects, their names would hide the picture
NUMBERED = 5
"""Hard negatives of a close-up that have a number, those of greatest GIoU."""

_TINT = 70  # of 255, how opaque an object's ground is

Array = NDArray[Any]


class _Sheet:
    """An image to draw on, in fractions of it; everything is drawn large and reduced at the end."""

    def __init__(self, image: Image.Image, side: int = SIDE) -> None:
        scale = side / max(image.size)
        self.size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        self.fine = (self.size[0] * _FINE, self.size[1] * _FINE)
        self.panel = _faded(image).resize(self.fine, Image.Resampling.BICUBIC).convert("RGBA")
        self.pen = ImageDraw.Draw(self.panel)

    def corners(self, box: Array, scale: tuple[int, int] | None = None) -> Box:
        """The corners of a cxcywh box in pixels; boxes that are not finite become a point."""
        cx, cy, width, height = np.nan_to_num(np.asarray(box, dtype=float), nan=0.0, posinf=0.0, neginf=0.0).tolist()
        x, y = scale or self.fine
        half_w, half_h = abs(width) / 2, abs(height) / 2
        return (cx - half_w) * x, (cy - half_h) * y, (cx + half_w) * x, (cy + half_h) * y

    def tint(self, box: Array, colour: Colour, opacity: int = _TINT) -> None:
        """A transparent ground."""
        layer = Image.new("RGBA", self.fine, (0, 0, 0, 0))
        ImageDraw.Draw(layer).rectangle(self.corners(box), fill=(*colour, opacity))
        self.panel.alpha_composite(layer)

    def solid(self, box: Array, colour: Colour, width: float = 3.0) -> None:
        """A continuous outline with dark edges."""
        x0, y0, x1, y1 = self.corners(box)
        edge = round(width * _FINE)
        self.pen.rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), outline=_DARK, width=edge + 4)
        self.pen.rectangle((x0, y0, x1, y1), outline=colour, width=edge)

    def dashed(self, box: Array, colour: Colour, width: float = 1.5) -> None:
        """A broken outline on a dark one."""
        x0, y0, x1, y1 = self.corners(box)
        for ends in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
            self.dashes(*ends, colour, width)

    def dashes(self, start: tuple[float, float], end: tuple[float, float], colour: Colour, width: float = 1.5) -> None:
        """A broken line on a dark one."""
        self.pen.line((*start, *end), fill=(*_DARK, 255), width=max(1, round(width * _FINE / 2)))
        length = math.hypot(end[0] - start[0], end[1] - start[1])
        step, dash = 9 * _FINE, 6 * _FINE
        for place in range(math.ceil(min(length, 4 * max(self.fine)) / step)):
            ends = [min(one / length, 1.0) for one in (place * step, place * step + dash)]
            points = [start[axis] + share * (end[axis] - start[axis]) for share in ends for axis in (0, 1)]
            self.pen.line(points, fill=colour, width=round(width * _FINE))

    def dot(self, box: Array, colour: Colour, radius: float = 1.6, *, hollow: bool = False) -> None:
        """The centre of a box."""
        x0, y0, x1, y1 = self.corners(box)
        x, y, r = (x0 + x1) / 2, (y0 + y1) / 2, radius * _FINE
        self.pen.ellipse((x - r - 2, y - r - 2, x + r + 2, y + r + 2), fill=_DARK)
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=_DARK if hollow else colour, outline=colour, width=3)

    def centre(self, box: Array) -> tuple[float, float]:
        """The centre of a box, in pixels."""
        x0, y0, x1, y1 = self.corners(box)
        return (x0 + x1) / 2, (y0 + y1) / 2

    def finished(self, tags: Sequence[tuple[Array, str, Colour]] = ()) -> Image.Image:
        """The panel at its size, with names at boxes."""
        panel = self.panel.convert("RGB").resize(self.size, Image.Resampling.LANCZOS)
        pen = ImageDraw.Draw(panel)
        for box, text, colour in tags:
            draw_tag(pen, self.corners(box, self.size), text, colour, self.size)
        return panel


def draw_queries(scene: Scene, layer: int) -> Image.Image:
    """All queries of a layer: easy negatives as dots, hard negatives dashed, positives solid; objects as grounds."""
    sheet = _with_objects(scene)
    for query in np.flatnonzero(scene.role[layer] == Role.EASY_NEGATIVE):
        sheet.dot(scene.boxes[layer, query], _PALE)
    for query in np.flatnonzero(scene.role[layer] == Role.HARD_NEGATIVE):
        sheet.dashed(scene.boxes[layer, query], class_colour(int(scene.owner[layer, query])))
    for query in np.flatnonzero(scene.role[layer] == Role.POSITIVE):
        sheet.solid(scene.boxes[layer, query], class_colour(int(scene.owner[layer, query])))
    return sheet.finished(_names(scene))


def draw_close_up(scene: Scene, layer: int, number: int) -> Image.Image:
    """One object with the queries around it; its hard negatives are numbered by their GIoU."""
    positive, hard = scene.positive(layer, number), scene.hard_negatives(layer, number)
    shown = [scene.objects[number], *(scene.boxes[layer, query] for query in hard)]
    shown += [scene.boxes[layer, positive]] if positive is not None else []
    part, moved = _cut_out(scene.image, np.stack(shown))
    sheet, colour = _Sheet(part), class_colour(number)
    sheet.tint(moved[0], colour)
    for place, box in enumerate(moved[1 : len(hard) + 1]):
        sheet.dashed(box, colour, 2.0 if place < NUMBERED else 1.0)
    if positive is not None:
        sheet.solid(moved[-1], colour)
    tags = [
        (_corner(box, place), str(place + 1), colour) for place, box in enumerate(moved[1 : len(hard) + 1][:NUMBERED])
    ]
    return sheet.finished(tags)


def draw_pairs(scene: Scene, pairs: Pairs) -> Image.Image:
    """Lines from the teacher's boxes (dots) to the student's (rings): solid for positives, dashed for the others."""
    sheet = _with_objects(scene)
    for place in np.argsort(pairs.is_positive, kind="stable"):
        teacher, student = pairs.teacher_boxes[place], pairs.student_boxes[place]
        colour, ends = class_colour(int(pairs.owner[place])), (sheet.centre(teacher), sheet.centre(student))
        if pairs.is_positive[place]:
            sheet.solid(teacher, colour, 2.0)
            sheet.dashed(student, colour, 2.0)
            sheet.pen.line((*ends[0], *ends[1]), fill=colour, width=3 * _FINE)
        else:
            sheet.dashes(*ends, colour)
        radius = 4.0 if pairs.is_positive[place] else 2.5
        sheet.dot(teacher, colour, radius)
        sheet.dot(student, colour, radius, hollow=True)
    return sheet.finished()


def draw_heat(scene: Scene, levels: Sequence[Array]) -> Image.Image:
    """Maps of a sum over the image, one a memory level, as one glow; brightness is the root of the density.

    Each cell's value is spread evenly over the area it covers, so that levels of any number of cells add up.

    Args:
        scene: whose image it is.
        levels: [h, w] non-negative, each over the whole image.
    """
    width, height = _Sheet(scene.image).size
    density = density_of(levels, (height, width))
    strength = np.sqrt(density / max(float(density.max()), 1e-12))
    grey = np.asarray(scene.image.convert("L").resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    glow = matplotlib.colormaps["inferno"](strength)[..., :3] * 255
    share = (0.25 + 0.6 * strength)[..., None]
    mixed = grey[..., None] * 0.55 * (1 - share) + glow * share + 40 * (1 - strength[..., None]) * share
    sheet = _Sheet(scene.image)
    sheet.panel = Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).resize(sheet.fine).convert("RGBA")
    sheet.pen = ImageDraw.Draw(sheet.panel)
    for box in scene.objects:
        sheet.solid(box, (255, 255, 255), 1.0)
    return sheet.finished()


def density_of(levels: Sequence[Array], size: tuple[int, int]) -> Array:
    """[height, width] maps of all levels shared out to pixels by area and added up: the whole sum is kept."""
    maps = [resize_sum(torch.from_numpy(np.asarray(level, dtype=np.float32)), size) for level in levels]
    return torch.stack(maps).sum(0).clamp(min=0).numpy()


def _with_objects(scene: Scene) -> _Sheet:
    sheet = _Sheet(scene.image)
    for box in scene.unknown:
        sheet.tint(box, _PALE, 40)
    for number, box in enumerate(scene.objects):
        sheet.tint(box, class_colour(number))
    return sheet


def _names(scene: Scene) -> list[tuple[Array, str, Colour]]:
    if len(scene.objects) > _TAGGED:
        return []
    names = [scene.class_names[label] for label in scene.labels]
    return [
        (box, name, class_colour(number)) for number, (box, name) in enumerate(zip(scene.objects, names, strict=True))
    ]


def _faded(image: Image.Image) -> Image.Image:
    """Half of its colour and a little of its light taken away, so that lines stand out."""
    grey = image.convert("L").convert("RGB")
    return Image.blend(Image.blend(image.convert("RGB"), grey, 0.6), Image.new("RGB", image.size, "black"), 0.2)


def _cut_out(image: Image.Image, boxes: Array) -> tuple[Image.Image, Array]:
    """The part of an image that holds all boxes, with some room around, and the boxes in fractions of it."""
    boxes = np.nan_to_num(boxes, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    room = 0.08 * (high.max(0) - low.min(0)) + 0.02
    start, end = (low.min(0) - room).clip(0, 1), (high.max(0) + room).clip(0, 1)
    pixels = np.array(image.size)
    left, top = np.minimum(np.floor(start * pixels), pixels - 1).astype(int)
    right, bottom = np.maximum(np.ceil(end * pixels).astype(int), (left + 1, top + 1))
    span = np.array([right - left, bottom - top])
    moved = boxes.copy()
    moved[:, :2] = (boxes[:, :2] * pixels - (left, top)) / span
    moved[:, 2:] = boxes[:, 2:] * pixels / span
    return image.crop((int(left), int(top), int(right), int(bottom))), moved


def _corner(box: Array, place: int) -> Array:
    """A point at one corner of a box, another one for each place: numbers of nested boxes lie apart."""
    x, y = ((-1, -1), (1, 1), (1, -1), (-1, 1))[place % 4]
    return np.array([box[0] + x * box[2] / 2, box[1] + y * box[3] / 2, 0.0, 0.0])
