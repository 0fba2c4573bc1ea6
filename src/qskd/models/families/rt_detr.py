"""RT-DETR (Zhao et al. 2023): sigmoid heads, denoising queries in training, no padding mask."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_rt_detr import RTDetrLoss

from qskd.data.batch import Batch
from qskd.errors import ConfigError, DataError
from qskd.models.adapter import DetrAdapter, MatchCosts, Need, OwnLoss, Reading
from qskd.models.attention_deformable import deformable_attention, sampling_inputs
from qskd.models.hooks import float32_outputs, record_calls
from qskd.models.view import AttentionReader, DetrView


class RTDetrAdapter(DetrAdapter):
    """Reads ``RTDetrForObjectDetection``; its training loss, with denoising, is Hugging Face's own."""

    family = "rt_detr"
    reads_padding = False
    trains_with = "own"
    provides = frozenset(Need)

    @property
    def match_costs(self) -> MatchCosts:
        """The costs of ``RTDetrHungarianMatcher``.

        Raises:
            ConfigError: the matcher applies softmax to logits that training treats as sigmoids.
        """
        config = self._config
        if not config.use_focal_loss:
            raise ConfigError(
                "This RT-DETR has use_focal_loss=False: its matcher applies softmax to sigmoid logits, which "
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
        with widened, record_calls(modules) as calls:
            output = self._network(pixel_values=self.normalise(batch), labels=labels, return_dict=True)
        skipped, memory = _denoising_queries(output), tuple(output.encoder_last_hidden_state)
        view = DetrView(
            logits=output.intermediate_logits[:, :, skipped:].transpose(0, 1),
            no_object=None,
            boxes=output.intermediate_reference_points[:, :, skipped:].transpose(0, 1).float(),
            memory=memory,
            is_padding=tuple(_no_padding(level) for level in memory),
            strides=self.strides,
            attention=self._attention(modules, calls, skipped, memory) if capture_attention else None,
        )
        return Reading(view, own_loss=None if labels is None else self._own_loss(output, labels))

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
                f"A batch of {height}x{width} pixels has padded images, but rt_detr reads no padding mask "
                "and would take the padding for a picture. Resize every image to one fixed square size."
            )
        coarsest = max(self.strides)
        if height % coarsest or width % coarsest:
            raise DataError(
                f"rt_detr was given images of {height}x{width} pixels; both sides must be multiples of "
                f"{coarsest}, its largest stride. Choose such an image size."
            )
        fixed = self._config.anchor_image_size
        if fixed and not self.model.training and [height, width] != list(fixed):
            raise DataError(
                f"rt_detr was given images of {height}x{width} pixels, but its config fixes "
                f"anchor_image_size to {list(fixed)}. Use that size, or set anchor_image_size to null there."
            )

    def _attention(
        self, modules: list[Any], calls: list[dict[str, Any]], skipped: int, memory: tuple[Tensor, ...]
    ) -> AttentionReader:
        layers = [sampling_inputs(module, call, skipped) for module, call in zip(modules, calls, strict=True)]
        read = deformable_attention(layers, tuple(calls[0]["spatial_shapes_list"]))
        tokens = sum(level.shape[-2] * level.shape[-1] for level in memory)
        # A decoder may make coarser levels of its own after the encoder's; they are no part of the memory.
        return lambda weights: read(weights)[..., :tokens]

    def _own_loss(self, output: Any, labels: list[dict[str, Tensor]]) -> OwnLoss:
        """Hugging Face's criterion, fed here instead of by its model's forward.

        That forward fails on a batch without any object, and in some releases (5.17 for one) lets denoising
        queries compete for the objects of the last layer.
        """
        criterion = RTDetrLoss(self._config)
        if not any(len(image["class_labels"]) for image in labels):
            criterion.matcher = _MatchNothing()
        parts: dict[str, Tensor] = criterion(self._predictions(output), labels)
        total = torch.stack(list(parts.values())).sum()  # the criterion has weighted every part
        embedding = getattr(self._network, "denoising_class_embed", None)
        if embedding is not None and self.model.training and output.denoising_meta_values is None:
            total = total + embedding.weight.sum() * 0.0  # distributed training wants every parameter used
        return OwnLoss(total, {name: part.detach() for name, part in parts.items()})

    def _predictions(self, output: Any) -> dict[str, Any]:
        """What ``RTDetrLoss`` compares with the objects: last layer, other layers, proposals, denoising."""
        skipped = _denoising_queries(output)
        logits, boxes = output.intermediate_logits.unbind(1), output.intermediate_reference_points.unbind(1)
        normal = [_answer(a[:, skipped:], b[:, skipped:]) for a, b in zip(logits, boxes, strict=True)]
        predictions: dict[str, Any] = dict(normal[-1])
        if self._config.auxiliary_loss:
            proposals = _answer(output.enc_topk_logits, output.enc_topk_bboxes)
            predictions["auxiliary_outputs"] = [*normal[:-1], proposals]
            if skipped:
                predictions["dn_auxiliary_outputs"] = [
                    _answer(a[:, :skipped], b[:, :skipped]) for a, b in zip(logits, boxes, strict=True)
                ]
                predictions["denoising_meta_values"] = output.denoising_meta_values
        return predictions


class _MatchNothing(nn.Module):
    """Stands in for a matcher when no image has objects."""

    def forward(self, outputs: dict[str, Tensor], targets: list[Any]) -> list[tuple[Tensor, Tensor]]:
        nothing = torch.empty(0, dtype=torch.long)
        return [(nothing, nothing)] * len(targets)


def _answer(logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    return {"logits": logits, "pred_boxes": boxes}


def _denoising_queries(output: Any) -> int:
    """How many queries at the front are denoising queries."""
    values = output.denoising_meta_values
    return int(values["dn_num_split"][0]) if values else 0


def _no_padding(level: Tensor) -> Tensor:
    return torch.zeros_like(level[:, 0], dtype=torch.bool)  # [B, h, w]
