"""From an image with its boxes to what a model is shown: one crop, one resize, one colour matrix.

Every geometric augmentation is a map of a source rectangle of the image to a destination rectangle of the
output: cropping shrinks the source, zooming out shrinks the destination, flipping mirrors the output. So an
image is resampled once, and its boxes take exactly the way of its pixels. Colours change where the image has
fewer pixels, before the resize or after it: both are linear, so the order hardly matters.

Letters: N objects, h x w pixels.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from qskd.errors import ConfigError

Objects = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Labels [N] and boxes [N, 4]."""

Transform = Callable[[Tensor, Objects, np.random.Generator], tuple[Tensor, Objects]]
"""(pixels [3, h, w] uint8, (labels, corners in pixels), random) to (pixels, (labels, cxcywh fractions))."""

_CROP_TRIES = 24
_FILL = (124, 116, 104)  # ImageNet's mean, what zoomed-out images lie on: 0 after normalisation


@dataclass(frozen=True, slots=True)
class ImageSize:
    """What size images are given to a model: a fixed square, or the shorter edge with a limit of the longer.

    Exactly one of ``square`` and the pair of edges is set; all are pixels >= 1.
    """

    square: int | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None

    def __post_init__(self) -> None:
        edges = (self.shortest_edge, self.longest_edge)
        given = [size for size in (self.square, *edges) if size is not None]
        fits = edges == (None, None) if self.square is not None else None not in edges
        if not fits or min(given) < 1 or (len(given) == 2 and given[0] > given[1]):
            sizes = {name: value for name, value in asdict(self).items() if value is not None}
            said = ", ".join(f"{name} {value}" for name, value in sizes.items()) or "nothing"
            raise ConfigError(
                f"Image size is {said}; expected square, or shortest_edge <= longest_edge, in pixels, at least 1."
            )

    @property
    def largest(self) -> int:
        """No output has a longer side than this, in pixels."""
        return self.square or self.longest_edge or 0

    def of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that an image of this many pixels is resized to.

        The arithmetic of transformers' ``get_size_with_aspect_ratio``, so that evaluation sees what an image
        processor would make.
        """
        if self.square is not None:
            return self.square, self.square
        assert self.shortest_edge is not None
        assert self.longest_edge is not None
        short, long = min(height, width), max(height, width)
        edge, exact = self.shortest_edge, None
        if long / short * edge > self.longest_edge:
            exact = self.longest_edge * short / long
            edge = round(exact)
        if edge == short:
            return height, width
        other = int((exact if exact is not None else edge) * long / short)
        return (max(other, 1), max(edge, 1)) if width < height else (max(edge, 1), max(other, 1))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How training images are varied. The first four are probabilities; 0 switches an effect off."""

    flip: float = 0.5  # mirrored left to right
    crop: float = 0.5  # a part of the image with at least one object's centre
    zoom_out: float = 0.0  # the whole image, smaller, on grey; never together with crop
    photometric: float = 0.5  # brightness, contrast, saturation and hue
    crop_area: float = 0.3  # the smallest part of the image's area that a crop keeps
    zoom_out_side: float = 0.5  # the smallest part of the output's side that a zoomed-out image fills
    brightness: float = 0.2  # of the full range, added or subtracted
    contrast: float = 0.3  # factor 1 +- this
    saturation: float = 0.4  # factor 1 +- this
    hue: float = 0.05  # of a full turn, either way

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise ConfigError(f"Augmentation.{field.name} is {value}; expected 0 to 1.")
        if self.crop + self.zoom_out > 1:
            raise ConfigError(
                f"Augmentation: crop ({self.crop}) and zoom_out ({self.zoom_out}) exclude each other, so "
                "their probabilities may add up to 1 at most."
            )
        if not self.crop_area or not self.zoom_out_side:
            raise ConfigError("Augmentation: crop_area and zoom_out_side must be above 0.")

    @classmethod
    def none(cls) -> "Augmentation":
        """Images as they are."""
        return cls(flip=0, crop=0, zoom_out=0, photometric=0)


@dataclass(frozen=True, slots=True)
class Placement:
    """Which part of an image goes where in the output; rectangles are (left, top, width, height), pixels."""

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]
    output: tuple[int, int]  # (height, width)
    is_flipped: bool = False

    def pixels(self, image: Tensor, colours: NDArray[np.float64] | None = None) -> Tensor:
        """[3, h, w] uint8 to [3, *output] uint8, recoloured by a 3 x 4 matrix if one is given."""
        left, top, width, height = self.source
        x, y, target_width, target_height = self.target
        part = _interleaved(image[:, top : top + height, left : left + width])
        is_enlarged = target_width * target_height >= width * height
        if colours is not None and is_enlarged:
            part = recoloured(part, colours)
        part = F.resize(part, [target_height, target_width], antialias=True)
        if colours is not None and not is_enlarged:
            part = recoloured(part, colours)
        if (target_height, target_width) != self.output:
            canvas = part.new_tensor(_FILL).expand(*self.output, 3).contiguous().permute(2, 0, 1)
            canvas[:, y : y + target_height, x : x + target_width] = part
            part = canvas
        return part.flip(-1) if self.is_flipped else part

    def objects(self, objects: Objects) -> Objects:
        """Corners in pixels of the image to centre form in fractions of the output.

        An object whose centre is not in the source is left out; what sticks out of it is cut off.
        """
        labels, corners = objects
        low = np.array(self.source[:2], dtype=np.float64)
        span = np.array(self.source[2:], dtype=np.float64)
        centres = (corners[:, :2] + corners[:, 2:]) / 2 - low
        keep = ((centres > 0) & (centres < span)).all(axis=1)
        shares = (corners[keep].reshape(-1, 2, 2) - low) / span  # of the source, [N, 2 corners, 2 axes]
        output = np.array(self.output[::-1], dtype=np.float64)
        shares = (shares.clip(0, 1) * self.target[2:] + self.target[:2]) / output
        if self.is_flipped:
            shares[:, :, 0] = 1 - shares[:, ::-1, 0]
        boxes = np.concatenate([shares.mean(axis=1), shares[:, 1] - shares[:, 0]], axis=1)
        return labels[keep], boxes


@dataclass(frozen=True, slots=True)
class DetectionTransform:
    """Crops or zooms out, resizes, mirrors and recolours; with ``Augmentation.none()`` only resizes."""

    size: ImageSize
    augment: Augmentation

    def __call__(self, pixels: Tensor, objects: Objects, rng: np.random.Generator) -> tuple[Tensor, Objects]:
        """See ``Transform``; the result depends on nothing but the arguments."""
        flip, window, recolour = rng.random(3)
        placement = self._place(pixels.shape[1], pixels.shape[2], objects[1], window, rng)
        if flip < self.augment.flip:
            placement = Placement(placement.source, placement.target, placement.output, True)
        colours = colour_matrix(self.augment, rng) if recolour < self.augment.photometric else None
        return placement.pixels(pixels, colours).contiguous(), placement.objects(objects)

    def _place(
        self, height: int, width: int, corners: NDArray[np.float64], draw: float, rng: np.random.Generator
    ) -> Placement:
        source = (0, 0, width, height)
        if draw < self.augment.crop:
            source = crop_window(height, width, corners, self.augment.crop_area, rng)
        output = self.size.of(source[3], source[2])
        target = (0, 0, output[1], output[0])
        if 0 <= draw - self.augment.crop < self.augment.zoom_out:
            target = zoomed_out(output, self.augment.zoom_out_side, rng)
        return Placement(source, target, output)


def build_transform(size: ImageSize, *, train: bool, augment: Augmentation | None = None) -> Transform:
    """What to do with each image: augmented for training, only resized for evaluation."""
    chosen = augment if augment is not None else Augmentation()
    return DetectionTransform(size, chosen if train else Augmentation.none())


def crop_window(
    height: int, width: int, corners: NDArray[np.float64], smallest_area: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A part (left, top, width, height) of the image, in pixels.

    Its area is ``smallest_area`` to 1 of the image's, its shape up to 4:3 flatter or higher than the image.
    The first of several tries that holds the centre of an object is taken; the whole image if none does. In
    an image without objects any part will do.
    """
    area = rng.uniform(smallest_area, 1, _CROP_TRIES)
    flatness = np.exp(rng.uniform(-1, 1, _CROP_TRIES) * math.log(4 / 3))
    shares = np.stack([np.sqrt(area * flatness), np.sqrt(area / flatness)], axis=1).clip(max=1)
    full = np.array([width, height])
    spans = np.maximum(np.rint(shares * full), 1).astype(np.int64)  # [tries, 2]
    lows = np.floor(rng.random((_CROP_TRIES, 2)) * (full - spans + 1)).astype(np.int64)
    if len(corners):
        centres = (corners[:, :2] + corners[:, 2:]) / 2
        inside = (centres > lows[:, None]) & (centres < (lows + spans)[:, None])  # [tries, N, 2]
        found = np.flatnonzero(inside.all(axis=2).any(axis=1))
    else:
        found = np.arange(_CROP_TRIES)
    if not len(found):
        return 0, 0, width, height
    (left, top), (span_x, span_y) = lows[found[0]].tolist(), spans[found[0]].tolist()
    return left, top, span_x, span_y


def zoomed_out(output: tuple[int, int], smallest_side: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Where in the output (height, width) its smaller version goes: (left, top, width, height), pixels.

    Outputs of other sizes get the same place from the same random numbers, but for rounding.
    """
    scale = rng.uniform(smallest_side, 1)
    height, width = (max(1, round(side * scale)) for side in output)
    left, top = (math.floor(rng.random() * free) for free in (output[1] - width + 1, output[0] - height + 1))
    return left, top, width, height


def _interleaved(pixels: Tensor) -> Tensor:
    """The same [3, h, w] with the channels of a pixel side by side: resizes twice as fast."""
    return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)


_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def colour_matrix(augment: Augmentation, rng: np.random.Generator) -> NDArray[np.float64]:
    """One random change of brightness, contrast, saturation and hue as a 3 x 4 matrix on (R, G, B, 255).

    All four are affine maps of a pixel (hue is turned about the grey axis in YIQ, which keeps the luma, where
    HSV would not be linear), so they cost one product. Contrast pivots on mid-grey rather than on the image's
    mean, which saves reading the image once more.
    """
    brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4)
    angle = hue * augment.hue * 2 * math.pi
    colour = 1 + saturation * augment.saturation
    turn = np.eye(3)
    turn[1:, 1:] = colour * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    factor = 1 + contrast * augment.contrast
    linear = factor * (np.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ)
    shift = np.full((3, 1), 0.5 * (1 - factor) + brightness * augment.brightness)
    return np.concatenate([linear, shift], axis=1)


def recoloured(pixels: Tensor, matrix: NDArray[np.float64]) -> Tensor:
    """[3, h, w] uint8 with every pixel multiplied by a 3 x 4 colour matrix, clipped to 0..255.

    Pillow's loop over the interleaved bytes: 5 times as fast as the same product on float tensors.
    """
    scaled = matrix * [1, 1, 1, 255]
    image = Image.fromarray(_interleaved(pixels).permute(1, 2, 0).numpy())
    changed = image.convert("RGB", tuple(scaled.ravel().tolist()))
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)
