"""What RT-DETR and its successors have in common: a hybrid encoder's maps, denoising queries, no padding mask."""

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qskd.data.batch import Batch
from qskd.errors import ConfigError, DataError
from qskd.models.adapter import DetrAdapter, MatchCosts, Need, OwnLoss, Reading, parts_or_nan
from qskd.models.attention_deformable import deformable_attention, sampling_inputs
from qskd.models.hooks import float32_outputs, record_calls
from qskd.models.view import AttentionReader, DetrView


class HybridEncoderAdapter(DetrAdapter):
    """Reads a DETR of RT-DETR's kind; its training loss, with denoising, is Hugging Face's own.

    A family adds its criterion, and says what of its decoder's output belongs to which layer.
    """

    reads_padding: ClassVar[bool] = False
    trains_with: ClassVar[Literal["set_prediction", "own"]] = "own"
    provides: ClassVar[frozenset[Need]] = frozenset(Need)

    @property
    def match_costs(self) -> MatchCosts:
        """The costs of ``RTDetrHungarianMatcher``, which all of these families use.

        Raises:
            ConfigError: the matcher applies softmax to logits that training treats as sigmoids.
        """
        config = self._config
        if not config.use_focal_loss:
            raise ConfigError(
                f"This {self.family} has use_focal_loss=False: its matcher applies softmax to sigmoid logits, which "
                "qskd does not imitate. Set use_focal_loss=True in the model's config.json."
            )
        return MatchCosts(
            kind="focal",
            class_weight=config.matcher_class_cost,
            box_weight=config.matcher_bbox_cost,
            giou_weight=config.matcher_giou_cost,
            alpha=config.matcher_alpha,
            gamma=config.matcher_gamma,
        )

    @property
    def memory_channels(self) -> tuple[int, ...]:
        """Channels of each map of the hybrid encoder, before the decoder's input projection."""
        return (self._config.encoder_hidden_dim,) * len(self.strides)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each map of the hybrid encoder."""
        return tuple(self._config.feat_strides)

    @property
    def picks_queries(self) -> bool:
        """Always."""
        return True

    @property
    def only_size(self) -> tuple[int, int] | None:
        """The size that the anchors were made for, if the configuration fixes it."""
        fixed = self._config.anchor_image_size
        return (int(fixed[0]), int(fixed[1])) if fixed else None

    @property
    def num_layers(self) -> int:
        """L, the decoder layers."""
        return int(self._config.decoder_layers)

    def read(self, batch: Batch, *, capture_attention: bool = False, with_loss: bool = False) -> Reading:
        """One forward pass; see ``DetrAdapter.read``. Denoising queries are left out of the view.

        Raises:
            DataError: an image is padded, or the size suits neither the strides nor the model's anchors.
        """
        self._check_size(batch)
        labels = batch.targets.as_huggingface() if with_loss else None
        modules = [layer.encoder_attn for layer in self._network.decoder.layers] if capture_attention else []
        widened = float32_outputs(self._network.decoder_input_proj, batch.pixels.device)
        with widened, self._every_layer(), record_calls(modules) as calls:
            output = self._network(pixel_values=self.normalise(batch), labels=labels, return_dict=True)
        kept, memory = slice(denoising_queries(output), None), tuple(output.encoder_last_hidden_state)
        logits, boxes = self._layers(output)
        view = DetrView(
            logits=logits[:, :, kept].transpose(0, 1),
            no_object=None,
            boxes=boxes[:, :, kept].transpose(0, 1).float(),
            memory=memory,
            is_padding=tuple(_no_padding(level) for level in memory),
            strides=self.strides,
            attention=_attention(modules, calls, kept, memory) if capture_attention else None,
        )
        return Reading(view, own_loss=None if labels is None else self._own_loss(output, labels))

    @abstractmethod
    def _criterion(self) -> Any:
        """Hugging Face's loss of this family."""

    @abstractmethod
    def _predictions(self, output: Any) -> dict[str, Any]:
        """What the criterion compares with the objects: last layer, other layers, proposals, denoising."""

    def _every_layer(self) -> AbstractContextManager[None]:
        """Inside it the model says what every decoder layer predicts."""
        return nullcontext()

    def _layers(self, output: Any) -> tuple[Tensor, Tensor]:
        """Logits [B, L, Q, C] and boxes [B, L, Q, 4], denoising queries first."""
        return output.intermediate_logits, output.intermediate_reference_points

    @property
    def _config(self) -> Any:
        return self.model.config

    @property
    def _network(self) -> Any:
        return self.model.model

    def _check_size(self, batch: Batch) -> None:
        height, width = batch.pixels.shape[-2:]
        if batch.is_padded:
            raise DataError(
                f"A batch of {height}x{width} pixels has padded images, but {self.family} reads no padding mask "
                "and would take the padding for a picture. Resize every image to one fixed square size."
            )
        coarsest = max(self.strides)
        if height % coarsest or width % coarsest:
            raise DataError(
                f"{self.family} was given images of {height}x{width} pixels; both sides must be multiples of "
                f"{coarsest}, its largest stride. Choose such an image size."
            )
        fixed = self._config.anchor_image_size
        if fixed and not self.model.training and [height, width] != list(fixed):
            raise DataError(
                f"{self.family} was given images of {height}x{width} pixels, but its config fixes "
                f"anchor_image_size to {list(fixed)}. Use that size, or set anchor_image_size to null there."
            )

    def _own_loss(self, output: Any, labels: list[dict[str, Tensor]]) -> OwnLoss:
        """Hugging Face's criterion, fed here instead of by its model's forward.

        That forward fails on a batch without any object, and in some releases (5.17 for one) lets denoising
        queries compete for the objects of the last layer.
        """
        criterion = self._criterion().to(output.intermediate_logits.device)
        if not any(len(image["class_labels"]) for image in labels):
            criterion.matcher = _MatchNothing()
        parts = parts_or_nan(
            lambda: criterion(self._predictions(output), labels),
            output.intermediate_logits,
            output.intermediate_reference_points,
        )
        total = torch.stack(list(parts.values())).sum()  # the criterion has weighted every part
        if self.model.training:
            total = total + self._nothing(output)
        return OwnLoss(total, {name: part.detach() for name, part in parts.items()})

    def _nothing(self, output: Any) -> Tensor:
        """A zero that holds every head and embedding: distributed training wants every parameter used."""
        nothing = output.intermediate_logits.float().sum() * 0.0
        embedding = getattr(self._network, "denoising_class_embed", None)
        return nothing if embedding is None else nothing + embedding.weight.sum() * 0.0


class _MatchNothing(nn.Module):
    """Stands in for a matcher when no image has objects."""

    def forward(self, outputs: dict[str, Tensor], targets: list[Any]) -> list[tuple[Tensor, Tensor]]:
        nothing = torch.empty(0, dtype=torch.long)
        return [(nothing, nothing)] * len(targets)


def answer(logits: Tensor, boxes: Tensor) -> dict[str, Any]:
    """One layer's predictions, as Hugging Face's criteria take them."""
    return {"logits": logits, "pred_boxes": boxes}


def denoising_queries(output: Any) -> int:
    """How many queries at the front are denoising queries."""
    values = output.denoising_meta_values
    return int(values["dn_num_split"][0]) if values else 0


def _attention(
    modules: list[Any], calls: list[dict[str, Any]], kept: slice, memory: tuple[Tensor, ...]
) -> AttentionReader:
    layers = [sampling_inputs(module, call, kept) for module, call in zip(modules, calls, strict=True)]
    read = deformable_attention(layers, tuple(calls[0]["spatial_shapes_list"]))
    tokens = sum(level.shape[-2] * level.shape[-1] for level in memory)
    # A decoder may make coarser levels of its own after the encoder's; they are no part of the memory.
    return lambda weights, most: read(weights, most)[..., :tokens]


def _no_padding(level: Tensor) -> Tensor:
    return torch.zeros_like(level[:, 0], dtype=torch.bool)  # [B, h, w]
