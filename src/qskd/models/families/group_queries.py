"""What LW-DETR and RF-DETR have in common: a plain ViT, no encoder, groups of queries in training."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher, LwDetrImageLoss

from qskd.data.batch import Batch
from qskd.errors import DataError
from qskd.models.adapter import DetrAdapter, MatchCosts, Need, OwnLoss, Reading, parts_or_nan
from qskd.models.attention_deformable import Grid, deformable_attention, sampling_inputs
from qskd.models.hooks import record_calls
from qskd.models.view import DetrView


class GroupQueriesAdapter(DetrAdapter):
    """Reads a detector of LW-DETR's kind: the view holds the first group, the one kept at inference.

    The memory is what the decoder attends to. The ViT has no padding mask, so every image must fill its
    canvas. Boxes are exponentials, not sigmoids, and may reach out of the image.

    A family adds how many pixels a cell of each level is.
    """

    reads_padding: ClassVar[bool] = False
    trains_with: ClassVar[Literal["set_prediction", "own"]] = "own"
    provides: ClassVar[frozenset[Need]] = frozenset(Need)

    @property
    def match_costs(self) -> MatchCosts:
        """The costs of ``LwDetrHungarianMatcher``, whose alpha and gamma no configuration changes."""
        config = self._config
        return MatchCosts("focal", config.class_cost, config.bbox_cost, config.giou_cost, alpha=0.25, gamma=2.0)

    @property
    def memory_channels(self) -> tuple[int, ...]:
        """Channels of every level: the width of the decoder."""
        return (self._config.d_model,) * len(self.strides)

    @property
    def picks_queries(self) -> bool:
        """Always, each group for itself."""
        return True

    @property
    def num_layers(self) -> int:
        """L, the decoder layers."""
        return int(self._config.decoder_layers)

    def read(self, batch: Batch, *, capture_attention: bool = False, with_loss: bool = False) -> Reading:
        """One forward pass; see ``DetrAdapter.read``.

        Raises:
            DataError: an image is padded, or the ViT cannot cut its size into windows.
        """
        self._check_size(batch)
        decoder, kept = self._network.decoder, slice(0, self.num_queries)
        modules = [layer.cross_attn for layer in decoder.layers] if capture_attention else []
        with record_calls([decoder, *modules]) as calls:
            output = self._network(pixel_values=self.normalise(batch), return_dict=True)
        grid: Grid = tuple((int(height), int(width)) for height, width in calls[0]["spatial_shapes_list"])
        logits, boxes = self._heads(output)
        memory = _levels(calls[0]["encoder_hidden_states"], grid)
        layers = [sampling_inputs(module, call, kept) for module, call in zip(modules, calls[1:], strict=True)]
        view = DetrView(
            logits=logits[:, :, kept],
            no_object=None,
            boxes=boxes[:, :, kept],
            memory=memory,
            is_padding=tuple(torch.zeros_like(level[:, 0], dtype=torch.bool) for level in memory),
            strides=self.strides,
            attention=deformable_attention(layers, grid) if capture_attention else None,
        )
        return Reading(view, own_loss=self._own_loss(output, logits, boxes, batch) if with_loss else None)

    @property
    def _config(self) -> Any:
        return self.model.config

    @property
    def _model(self) -> Any:
        return self.model

    @property
    def _network(self) -> Any:
        return self.model.model

    def _check_size(self, batch: Batch) -> None:
        height, width = batch.pixels.shape[-2:]
        if batch.is_padded:
            raise DataError(
                f"A batch of {height}x{width} pixels has padded images, but the backbone of {self.family} reads no "
                "padding mask and would take the padding for a picture. Resize every image to one fixed square size."
            )
        step = self.size_multiple
        if height % step or width % step:
            raise DataError(
                f"{self.family} was given images of {height}x{width} pixels; both sides must be multiples of {step}, "
                "its patches times the windows of its backbone. Choose such an image size."
            )

    def _heads(self, output: Any) -> tuple[Tensor, Tensor]:
        """Logits [L, B, Q, C] and float32 boxes [L, B, Q, 4] of all groups; every layer starts from one reference."""
        states, reference = output.intermediate_hidden_states, output.intermediate_reference_points[-1]
        with torch.autocast(states.device.type, enabled=False):
            offsets = self._model.bbox_embed(states.to(self._model.dtype)).float()
        return self._model.class_embed(states), _moved(reference.float(), offsets)

    def _own_loss(self, output: Any, logits: Tensor, boxes: Tensor, batch: Batch) -> OwnLoss:
        """Hugging Face's loss of every layer and of the proposals, divided by this batch's objects times groups.

        In evaluation mode there is one group; Hugging Face would split its queries into as many as in training.
        """
        layers = len(logits) if self._config.auxiliary_loss else 1
        answers = {f"_{layer}": (logits[layer], boxes[layer]) for layer in range(len(logits) - layers, len(logits) - 1)}
        answers |= {"": (logits[-1], boxes[-1]), "_enc": self._proposals(output)}
        parts = parts_or_nan(lambda: self._parts(answers, batch), logits, boxes)
        total = torch.stack(list(parts.values())).sum()
        return OwnLoss(total, {name: part.detach() for name, part in parts.items()})

    def _parts(self, answers: dict[str, tuple[Tensor, Tensor]], batch: Batch) -> dict[str, Tensor]:
        """Every weighted part of the loss, of each answer by its suffix."""
        criterion, labels = self._criterion(), batch.targets.as_huggingface()
        count = max(batch.targets.total, 1) * self._groups
        parts: dict[str, Tensor] = {}
        for suffix, (scores, places) in answers.items():
            # In less than float32 a probability rounds to 1, and the loss takes the logarithm of what is left.
            outputs = {"logits": scores.float(), "pred_boxes": places.float()}
            match = criterion.matcher(outputs, labels, self._groups)
            for kind in criterion.losses:
                found = criterion.get_loss(kind, outputs, labels, match, count)
                parts |= {name + suffix: self._weights[name] * value for name, value in found.items()}
        return parts

    @property
    def _groups(self) -> int:
        return int(self._config.group_detr) if self.model.training else 1

    @property
    def _weights(self) -> dict[str, float]:
        config = self._config
        return {
            "loss_ce": config.class_loss_coefficient,
            "loss_bbox": config.bbox_loss_coefficient,
            "loss_giou": config.giou_loss_coefficient,
        }

    def _criterion(self) -> Any:
        config = self._config
        return LwDetrImageLoss(
            matcher=LwDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost),
            num_classes=config.num_labels,
            focal_alpha=config.focal_alpha,
            losses=["labels", "boxes"],
            group_detr=self._groups,
        )

    def _proposals(self, output: Any) -> tuple[Tensor, Tensor]:
        """Logits and boxes of the chosen memory cells of all groups; each group has its own heads."""
        states = torch.split(output.enc_outputs_class, self.num_queries, dim=1)
        heads = self._network.enc_out_class_embed
        logits = [head(group) for head, group in zip(heads, states, strict=False)]
        return torch.cat(logits, dim=1), output.enc_outputs_coord_logits


def _moved(reference: Tensor, offsets: Tensor) -> Tensor:
    """Boxes: the centre moves by offsets in units of the reference's size, the size grows exponentially."""
    size = reference[..., 2:]
    return torch.cat([offsets[..., :2] * size + reference[..., :2], offsets[..., 2:].exp() * size], dim=-1)


def _levels(tokens: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    """[B, S, D] tokens as one [B, D, h, w] map per level."""
    parts = torch.split(tokens.transpose(1, 2), [height * width for height, width in grid], dim=-1)
    return tuple(part.reshape(*part.shape[:2], *size) for part, size in zip(parts, grid, strict=True))
