"""Detections drawn on images: single panels, sheets of them, and panels inside a web page."""

import base64
import colorsys
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qskd.evaluation.detections import Detections

SCORE = 0.3  # detections from this score on are drawn
_AT_LEAST = 3  # drawn, thinly, where no score is that high
_TAGGED = 8  # with more boxes than this, their names would hide the picture
_SIDE = 384  # pixels of a panel's longer side
_COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)
)  # fmt: skip  # Okabe and Ito's, told apart with any colour vision

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Objects:
    """What is drawn on one image."""

    labels: tuple[int, ...]  # class index of each
    boxes: tuple[Box, ...]  # xyxy, pixels of the original image
    scores: tuple[float, ...] | None = None  # None: these are labels of the data
    is_sure: bool = True  # False: no score reached the threshold, these are merely the best
    threshold: float = SCORE

    def counted(self, class_names: Sequence[str]) -> str:
        """The objects in words, most frequent first: ``3 cat, 1 dog``."""
        counts = Counter(class_names[label] for label in self.labels)
        text = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
        return text if self.is_sure else f"no score of {self.threshold:.2g}; best: {text}"


def shown(found: Detections, score: float = SCORE) -> Objects:
    """The detections worth drawing: those with that score, or else the few best."""
    keep = int((np.asarray(found.scores) >= score).sum())
    is_sure = keep > 0
    chosen = slice(0, keep if is_sure else _AT_LEAST)
    return Objects(
        tuple(int(label) for label in found.labels[chosen]),
        tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in found.boxes[chosen]),
        tuple(float(value) for value in found.scores[chosen]),
        is_sure,
        score,
    )


def draw_objects(image: Image.Image, objects: Objects, class_names: Sequence[str], side: int = _SIDE) -> Image.Image:
    """The image with boxes on it, resized so that its longer side has ``side`` pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    panel = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(panel)
    scales = (size[0] / image.width, size[1] / image.height)
    boxes = [_upright_scaled(box, scales) for box in objects.boxes]
    for label, box in zip(objects.labels, boxes, strict=True):
        # A thick one has dark edges, to be seen on any ground.
        outline(pen, box, class_colour(label), line=3 if objects.is_sure else 2, edge=1 if objects.is_sure else 0)
    if len(boxes) <= _TAGGED:
        for position, (label, box) in enumerate(zip(objects.labels, boxes, strict=True)):
            name = class_names[label]
            text = name if objects.scores is None else f"{name} {objects.scores[position]:.2f}"
            draw_tag(pen, box, text, class_colour(label), size)
    return panel


def class_colour(label: int) -> Colour:
    """A colour for each class index; colour-blind safe for the first seven, turned by the golden angle after."""
    if label < len(_COLOURS):
        return _COLOURS[label]
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.65, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def detection_sheet(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Panels in a grid under column titles, on white.

    Args:
        rows: images of any sizes; a row may be shorter than the others.
        titles: one for each column.

    Raises:
        ValueError: no row, or a row longer than the titles.
    """
    if not rows or not titles or max(len(row) for row in rows) > len(titles):
        raise ValueError(f"{len(rows)} rows under {len(titles)} titles: give rows, and a title for each column.")
    gap, font = 8, text_font(16)
    columns = range(len(titles))
    widths = [max((row[c].width for row in rows if c < len(row)), default=80) for c in columns]
    heights = [max((image.height for image in row), default=0) for row in rows]
    head = 28
    lefts = [gap + sum(widths[:c]) + gap * c for c in columns]
    tops = [head + gap + sum(heights[:r]) + gap * r for r in range(len(rows))]
    sheet = Image.new("RGB", (lefts[-1] + widths[-1] + gap, tops[-1] + heights[-1] + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for column in columns:
        text = fitted(titles[column], widths[column], font)
        pen.text((lefts[column] + widths[column] / 2, head / 2 + gap / 2), text, "black", font, anchor="mm")
    for row, top, height in zip(rows, tops, heights, strict=True):
        for column, image in enumerate(row):
            corner = (lefts[column] + (widths[column] - image.width) // 2, top + (height - image.height) // 2)
            sheet.paste(image, corner)
    return sheet


def data_uri(image: Image.Image, quality: int = 82) -> str:
    """The image as a JPEG inside of a web address."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@lru_cache(maxsize=4)
def text_font(size: int) -> Any:
    """DejaVu Sans, which matplotlib brings along: the same on every machine, with Greek and Cyrillic."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _upright_scaled(box: Box, scales: tuple[float, float]) -> Box:
    """The box in the panel's pixels, its corners in order."""
    x0, x1 = box[0] * scales[0], box[2] * scales[0]
    y0, y1 = box[1] * scales[1], box[3] * scales[1]
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def outline(pen: ImageDraw.ImageDraw, box: Box, colour: Colour, *, line: int, edge: int) -> None:
    """A coloured box; its line lies inside of it, ``line`` pixels thick, and a dark edge outside, 0 for none."""
    x0, y0, x1, y1 = box
    if edge:
        pen.rectangle((x0 - edge, y0 - edge, x1 + edge, y1 + edge), outline=(20, 20, 20), width=edge)
    pen.rectangle(box, outline=colour, width=line)


def draw_tag(pen: ImageDraw.ImageDraw, box: Box, text: str, colour: Colour, size: tuple[int, int]) -> None:
    """The name above the box, or inside where there is no room above; always within the image."""
    font = text_font(12)
    text = fitted(text, size[0] - 6, font)
    width, height = tag_size(text, font)
    x = min(max(box[0], 0), max(size[0] - width, 0))
    y = box[1] - height if box[1] >= height else box[1]
    y = min(max(y, 0), max(size[1] - height, 0))
    paint_tag(pen, (x, y), text, colour, font)


def tag_size(text: str, font: Any) -> tuple[float, float]:
    """(width, height) in pixels of a text on its coloured ground."""
    left, top, right, bottom = font.getbbox(text)
    return right - left + 2 * _margin(font), bottom - top + 2 * round(font.size / 6)


def paint_tag(pen: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, colour: Colour, font: Any) -> None:
    """A text on a coloured ground, ``corner`` its left and top, in black or white, whichever can be read."""
    left, top, _, _ = font.getbbox(text)
    (x, y), (width, height) = corner, tag_size(text, font)
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = "black" if luma > 120 else "white"
    pen.text((x + _margin(font) - left, y + round(font.size / 6) - top), text, ink, font)


def _margin(font: Any) -> int:
    return round(font.size / 4)


def fitted(text: str, width: float, font: Any) -> str:
    """The text on one line, cut with an ellipsis if it is wider than so many pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
