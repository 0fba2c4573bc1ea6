"""Deformable DETR (Zhu et al. 2021): sigmoid heads, several memory levels, also refined and two-stage."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.models.deformable_detr.modeling_deformable_detr import inverse_sigmoid

from qskd.data.batch import Batch
from qskd.models.adapter import DetrAdapter, MatchCosts, Need, Proposals, Reading
from qskd.models.attention_deformable import Grid, deformable_attention, sampling_inputs
from qskd.models.hooks import float32_outputs, record_calls
from qskd.models.view import AttentionReader, DetrView

_PROBE_SIZE = 128  # pixels; a multiple of every stride a backbone has


class DeformableDetrAdapter(DetrAdapter):
    """Reads ``DeformableDetrForObjectDetection``.

    An image's predictions depend a little on the canvas it is padded to: the backbone's convolutions answer
    beyond the border of the content and read that answer again, and the group normalisation of the input
    projections counts padded cells. All the rest of the model, and this adapter, is blind to padding.
    """

    family = "deformable_detr"
    reads_padding = True
    trains_with = "set_prediction"
    provides = frozenset(Need)

    @property
    def match_costs(self) -> MatchCosts:
        """The costs of ``DeformableDetrHungarianMatcher``, whose alpha and gamma no configuration changes."""
        config = self._config
        return MatchCosts(
            kind="focal",
            class_weight=config.class_cost,
            box_weight=config.bbox_cost,
            giou_weight=config.giou_cost,
            alpha=0.25,
            gamma=2.0,
        )

    @property
    def memory_channels(self) -> tuple[int, ...]:
        """Channels of every level: the width of the transformer."""
        return (self._config.d_model,) * self._config.num_feature_levels

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of the backbone's levels, measured on a black image, and of the added ones."""
        parameter = next(self.model.parameters())
        image = parameter.new_zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE)
        cuda = [parameter.device] if parameter.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(cuda):  # a backbone may drop paths at random
            features = self._network.backbone(image, torch.ones_like(image[:, 0]))
        strides = [_PROBE_SIZE // feature.shape[-1] for feature, _ in features]
        while len(strides) < self._config.num_feature_levels:
            strides.append(strides[-1] * 2)
        return tuple(strides)

    @property
    def picks_queries(self) -> bool:
        """In two stages."""
        return bool(self._config.two_stage)

    @property
    def num_layers(self) -> int:
        """L, the decoder layers."""
        return int(self._config.decoder_layers)

    def read(self, batch: Batch, *, capture_attention: bool = False, with_loss: bool = False) -> Reading:
        """One forward pass; see ``DetrAdapter.read``. ``with_loss`` adds a two-stage model's proposals."""
        decoder = self._network.decoder
        modules = [layer.encoder_attn for layer in decoder.layers] if capture_attention else []
        pixels, pixel_mask = self.normalise(batch), ~batch.is_padding()
        widened = float32_outputs(decoder.bbox_embed or (), pixels.device)
        with widened, record_calls([decoder, *modules]) as calls:
            output = self._network(pixel_values=pixels, pixel_mask=pixel_mask, return_dict=True)
        grid, hidden = tuple(calls[0]["spatial_shapes_list"]), ~calls[0]["encoder_attention_mask"]
        logits, boxes = self._heads(output)
        view = DetrView(
            logits=logits,
            no_object=None,
            boxes=self.to_content(boxes, batch),
            memory=_levels(output.encoder_last_hidden_state.transpose(1, 2), grid),
            is_padding=_levels(hidden, grid),
            strides=self.strides,
            attention=_attention(modules, calls[1:], grid, hidden) if capture_attention else None,
        )
        return Reading(view, proposals=self._proposals(output, batch) if with_loss else None)

    @property
    def _config(self) -> Any:
        return self.model.config

    @property
    def _model(self) -> Any:
        return self.model

    @property
    def _network(self) -> Any:
        return self.model.model

    def _heads(self, output: Any) -> tuple[Tensor, Tensor]:
        """Logits [L, B, Q, C] and float32 boxes [L, B, Q, 4] in the model's frame, of all decoder layers.

        A layer's box is its head's answer added to the reference it was given, in logits: a point at first,
        and with refinement the box of the layer before.
        """
        states = output.intermediate_hidden_states.unbind(1)
        references = [output.init_reference_points, *output.intermediate_reference_points.unbind(1)[:-1]]
        # A two-stage model holds one more head of each kind, for its proposals.
        logits = [head(state) for head, state in zip(self._model.class_embed, states, strict=False)]
        boxes = [
            (head(state).float() + _origin(reference)).sigmoid()
            for head, state, reference in zip(self._model.bbox_embed, states, references, strict=False)
        ]
        return torch.stack(logits), torch.stack(boxes)

    def _proposals(self, output: Any, batch: Batch) -> Proposals | None:
        if output.enc_outputs_class is None:
            return None
        boxes = output.enc_outputs_coord_logits.float().sigmoid()
        return Proposals(output.enc_outputs_class, self.to_content(boxes, batch))


def _origin(reference: Tensor) -> Tensor:
    """The box [B, Q, 4] in logits to which a head adds: for a point [B, Q, 2] a size of logit 0."""
    return pad(inverse_sigmoid(reference.float()), (0, 4 - reference.shape[-1]))


def _attention(modules: list[Any], calls: list[dict[str, Any]], grid: Grid, is_padding: Tensor) -> AttentionReader:
    layers = [sampling_inputs(module, call) for module, call in zip(modules, calls, strict=True)]
    return deformable_attention(layers, grid, is_padding)


def _levels(tokens: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    """[B, ..., S] tokens as one [B, ..., h, w] map per level."""
    areas = [height * width for height, width in grid]
    parts = torch.split(tokens, areas, dim=-1)
    return tuple(part.view(*part.shape[:-1], *size) for part, size in zip(parts, grid, strict=True))
