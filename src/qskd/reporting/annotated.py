"""An image at its own size with boxes on it, each with its name and score."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from qskd.reporting.pictures import Box, Objects, class_colour, fitted, outline, paint_tag, tag_size, text_font

_TEXT = 0.022  # height of letters as a share of the image's mean side: 12 pixels at 640 x 480
_LEAST_TEXT = 9  # pixels; what is smaller cannot be read
_TEXT_TO_LINE = 5


def annotate(image: Image.Image, objects: Objects, class_names: Sequence[str]) -> Image.Image:
    """A copy of the image with all objects drawn; lines and letters grow with it.

    Args:
        image: of any size and mode.
        objects: best first; better ones lie on top, and get the better places for their names.
        class_names: by class index.

    Returns:
        RGB, of the same size.
    """
    drawn = image.convert("RGB") if image.mode != "RGB" else image.copy()
    pen = ImageDraw.Draw(drawn)
    font = text_font(max(_LEAST_TEXT, round(_TEXT * math.sqrt(drawn.width * drawn.height))))
    line = max(1, round(font.size / _TEXT_TO_LINE))
    boxes = [_inside(box, drawn.size) for box in objects.boxes]
    texts = [fitted(text, drawn.width - font.size / 2, font) for text in _texts(objects, class_names)]
    places = _places(boxes, [tag_size(text, font) for text in texts], drawn.size)
    for label, box in reversed(list(zip(objects.labels, boxes, strict=True))):
        outline(pen, box, class_colour(label), line=line, edge=max(1, line // 3))
    for label, corner, text in reversed(list(zip(objects.labels, places, texts, strict=True))):
        paint_tag(pen, corner, text, class_colour(label), font)
    return drawn


def _texts(objects: Objects, class_names: Sequence[str]) -> list[str]:
    names = [class_names[label] for label in objects.labels]
    if objects.scores is None:
        return names
    return [f"{name} {score:.2f}" for name, score in zip(names, objects.scores, strict=True)]


def _inside(box: Box, size: tuple[int, int]) -> Box:
    """The box clipped to the image, so that a line beyond its border can be seen."""
    x0, x1 = sorted(min(max(x, 0.0), size[0] - 1.0) for x in (box[0], box[2]))
    y0, y1 = sorted(min(max(y, 0.0), size[1] - 1.0) for y in (box[1], box[3]))
    return x0, y0, x1, y1


def _places(
    boxes: Sequence[Box], sizes: Sequence[tuple[float, float]], image: tuple[int, int]
) -> list[tuple[float, float]]:
    """Where each tag's left top corner goes: beside or in a corner of its box, hiding as little of others as can be."""
    taken: list[Box] = []
    for box, (width, height) in zip(boxes, sizes, strict=True):
        best: tuple[float, Box] | None = None
        for x, y in _corners(box, width, height):
            x = min(max(x, 0.0), max(image[0] - 1 - width, 0.0))
            y = min(max(y, 0.0), max(image[1] - 1 - height, 0.0))
            place = (x, y, x + width, y + height)
            hidden = sum(_common_area(place, other) for other in taken)
            if best is None or hidden < best[0]:
                best = (hidden, place)
            if hidden == 0:
                break
        assert best is not None
        taken.append(best[1])
    return [(place[0], place[1]) for place in taken]


def _corners(box: Box, width: float, height: float) -> list[tuple[float, float]]:
    """Places for a tag in order of preference: above, in the top, below, in the bottom; left, then right."""
    x0, y0, x1, y1 = box
    rows = (y0 - height if y0 >= height else y0, y0, y1, y1 - height)
    return [(x, y) for x in (x0, x1 - width) for y in rows]


def _common_area(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)
