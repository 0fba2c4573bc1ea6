"""What every family's adapter provides: one way to read any Hugging Face DETR.

An adapter holds a model and ends, before any loss sees a tensor, all the ways in which families differ:
stacks of (layers, batch) or (batch, layers), softmax or sigmoid heads, padded canvases, denoising queries.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from qskd.data.batch import Batch
from qskd.models.host import constant
from qskd.models.view import DetrView


class Need(Enum):
    """What a loss term may ask of a teacher's or student's view."""

    MEMORY = "encoder memory"
    ATTENTION = "cross-attention"
    PREDICTIONS = "all decoder layers' predictions"


@dataclass(frozen=True, slots=True)
class MatchCosts:
    """The costs with which a model's training matches queries to objects.

    kind "softmax": -p(class), after softmax (DETR); "focal": the focal cost on sigmoid probabilities.
    """

    kind: Literal["softmax", "focal"]
    class_weight: float
    box_weight: float  # of the L1 distance of cxcywh boxes
    giou_weight: float
    alpha: float = 0.25
    gamma: float = 2.0


@dataclass(frozen=True, slots=True)
class Proposals:
    """First-stage predictions of a two-stage model, one per memory token."""

    logits: Tensor  # [B, S, C]
    boxes: Tensor  # [B, S, 4] cxcywh, fractions of the image content


@dataclass(frozen=True, slots=True)
class OwnLoss:
    """The loss a family computes by itself, normalised by the objects of this batch alone."""

    total: Tensor  # scalar, already weighted
    parts: dict[str, Tensor]  # weighted parts, detached, for the log


def parts_or_nan(compute: Callable[[], dict[str, Tensor]], logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """What ``compute`` returns; one part that is NaN where it refuses predictions that are not finite.

    Hugging Face's matchers end in an error of their own then, before anybody could see that the loss is not finite.
    Nothing is asked of the device unless that happens.
    """
    try:
        return compute()
    except ValueError:
        if bool(logits.isfinite().all()) and bool(boxes.isfinite().all()):
            raise
        return {"loss_own": logits.sum() * torch.nan}


@dataclass(frozen=True, slots=True)
class Reading:
    """One forward pass: the view, and what only the model's own training loss needs."""

    view: DetrView
    proposals: Proposals | None = None  # two-stage set-prediction families
    own_loss: OwnLoss | None = None  # families with ``trains_with == "own"``, when targets were given


@dataclass(frozen=True, slots=True)
class PixelNorm:
    """Per-channel mean and standard deviation of pixels in [0, 1]."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


class DetrAdapter(ABC):
    """Reads one model. Subclasses, one per family, know its outputs.

    Args:
        model: a Hugging Face ``...ForObjectDetection`` of this family; it is used, never edited.
        pixel_norm: the normalisation its image processor applies.
        box_frame: what the model's boxes are fractions of, when an image is padded. "content" is how the
            original DETR checkpoints and qskd train; "canvas" is how Hugging Face's processors write labels.
    """

    family: ClassVar[str]  # config.model_type
    reads_padding: ClassVar[bool]  # whether the network takes a padding mask
    trains_with: ClassVar[Literal["set_prediction", "own"]]
    provides: ClassVar[frozenset[Need]]

    def __init__(
        self,
        model: nn.Module,
        *,
        pixel_norm: PixelNorm | None = None,
        box_frame: Literal["content", "canvas"] = "content",
    ) -> None:
        self.model = model
        self.pixel_norm = pixel_norm or PixelNorm()
        self.box_frame = box_frame

    @property
    @abstractmethod
    def match_costs(self) -> MatchCosts:
        """The costs of the model's own matcher, from its configuration."""

    @property
    @abstractmethod
    def memory_channels(self) -> tuple[int, ...]:
        """D of each memory level."""

    @property
    @abstractmethod
    def strides(self) -> tuple[int, ...]:
        """Pixels per memory cell, per level, fine to coarse."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """L, the decoder layers whose predictions a view holds."""

    @property
    def num_queries(self) -> int:
        """Q, the queries whose predictions a view holds."""
        config: Any = self.model.config
        return int(config.two_stage_num_proposals if getattr(config, "two_stage", False) else config.num_queries)

    @property
    def picks_queries(self) -> bool:
        """Whether queries are chosen among the memory's cells, so that there cannot be more of them."""
        return False

    @property
    def size_multiple(self) -> int:
        """Both sides of an image must be multiples of it."""
        return 1 if self.reads_padding else math.lcm(*self.strides)

    @property
    def only_size(self) -> tuple[int, int] | None:
        """The (height, width) in pixels that evaluation must use, if the configuration fixes one."""
        return None

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by index, of the model's classification head."""
        return {int(key): str(value) for key, value in self.model.config.id2label.items()}  # type: ignore[union-attr,operator]

    @abstractmethod
    def read(self, batch: Batch, *, capture_attention: bool = False, with_loss: bool = False) -> Reading:
        """One forward pass in the model's current mode (train or eval).

        Args:
            batch: images and objects; pixels are normalised here.
            capture_attention: make ``view.attention_mass`` available.
            with_loss: pass the targets to families that compute their own training loss (and denoise).

        Raises:
            DataError: the batch is padded and the family's network reads no padding mask.
        """

    def rebind(self, model: nn.Module) -> Self:
        """The same way of reading, of another model of the same shape (a moving average, say)."""
        return type(self)(model, pixel_norm=self.pixel_norm, box_frame=self.box_frame)

    def normalise(self, batch: Batch) -> Tensor:
        """[B, 3, H, W] pixels as the network expects them, exactly 0 in the padding."""
        like = batch.pixels
        mean = constant(self.pixel_norm.mean, like.device, like.dtype)[:, None, None]
        std = constant(self.pixel_norm.std, like.device, like.dtype)[:, None, None]
        normalised = (batch.pixels - mean) / std
        return normalised.masked_fill(batch.is_padding()[:, None], 0.0)

    def to_content(self, boxes: Tensor, batch: Batch) -> Tensor:
        """Boxes [..., B, Q, 4] in the model's frame, as fractions of the image content."""
        if self.box_frame == "content":
            return boxes
        height, width = batch.pixels.shape[-2:]
        rows, columns = batch.content.to(boxes.dtype).unbind(-1)  # [B]
        scale = torch.stack([width / columns, height / rows], dim=-1).repeat(1, 2)  # [B, 4]
        return boxes * scale[:, None, :]
