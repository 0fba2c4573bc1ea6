"""What DETR, Conditional DETR and DAB-DETR have in common: one feature map and ordinary cross-attention."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qskd.data.batch import Batch
from qskd.errors import ConfigError
from qskd.models.adapter import DetrAdapter, Need, Reading
from qskd.models.attention_dense import CrossAttention, DenseAttentionMass
from qskd.models.hooks import float32_outputs, record_outputs
from qskd.models.view import DetrView

Outputs = dict[nn.Module, Any]
"""What watched modules returned during one forward pass."""


class SingleScaleAdapter(DetrAdapter):
    """Reads a DETR whose memory is one map; a family adds its heads and its projections.

    Decoder states are taken from the layers themselves: transformers stacks them only if
    ``config.auxiliary_loss`` is set, and for DETR and Conditional DETR that option also changes the network
    (each layer's normalised state becomes the next layer's input).
    """

    reads_padding: ClassVar[bool] = True
    trains_with: ClassVar[Literal["set_prediction", "own"]] = "set_prediction"
    provides: ClassVar[frozenset[Need]] = frozenset({Need.MEMORY, Need.ATTENTION, Need.PREDICTIONS})

    model: Any

    @property
    def memory_channels(self) -> tuple[int, ...]:
        """Width of the transformer."""
        return (self.model.config.hidden_size,)

    @property
    def strides(self) -> tuple[int, ...]:
        """32 pixels a cell; 16 where the last stage is dilated instead (DC5); half of it for each stage left out."""
        config = self.model.config
        stages = getattr(config.backbone_config, "stage_names", None) or []
        used = getattr(config.backbone_config, "out_features", None) or stages
        left_out = len(stages) - 1 - stages.index(used[-1]) if stages else 0
        return ((16 if config.dilation else 32) >> left_out,)

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return self.model.config.decoder_layers

    def read(self, batch: Batch, *, capture_attention: bool = False, with_loss: bool = False) -> Reading:
        """One forward pass; ``with_loss`` changes nothing, since this family computes no loss of its own.

        Raises:
            ConfigError: the backbone's stride is not the family's, or training skipped a decoder layer.
        """
        pixels = self.normalise(batch).to(self.model.dtype)
        float32 = float32_outputs(self._references, pixels.device)
        with float32, record_outputs(self._watched(capture_attention)) as seen:
            outputs = self.model.model(pixels, pixel_mask=(~batch.is_padding()).long(), return_dict=True)
        states = self._states(outputs, seen)  # [L, B, Q, D]
        logits, no_object = self._classes(states)
        is_padding = ~self._coarsest(seen[self._backbone])[1]  # [B, h, w]
        self._check_stride(batch, is_padding)
        memory = seen[self.model.model.encoder][0]  # [B, S, D]
        view = DetrView(
            logits=logits,
            no_object=no_object,
            boxes=self.to_content(self._boxes(states, outputs), batch),
            memory=(memory.mT.unflatten(-1, is_padding.shape[1:]),),
            is_padding=(is_padding,),
            strides=self.strides,
            attention=self._attention(seen, is_padding.flatten(1)) if capture_attention else None,
        )
        return Reading(view)

    @property
    def _layers(self) -> list[Any]:
        return list(self.model.model.decoder.layers)

    @property
    def _backbone(self) -> nn.Module:
        """The module that returns a feature map and its mask of valid cells."""
        return self.model.model.backbone

    @property
    def _references(self) -> list[nn.Module]:
        """Heads inside the decoder whose results boxes are relative to; bfloat16 would cost whole pixels."""
        return []

    @abstractmethod
    def _classes(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [L, B, Q, C] and no-object logits [L, B, Q] of states [L, B, Q, D]."""

    @abstractmethod
    def _boxes(self, states: Tensor, outputs: Any) -> Tensor:
        """Boxes [L, B, Q, 4] in the model's frame of states [L, B, Q, D] and the base model's outputs."""

    @abstractmethod
    def _projections(self, layer: Any) -> list[nn.Module]:
        """The modules of a decoder layer whose outputs its cross-attention compares."""

    @abstractmethod
    def _cross_attention(self, layer: Any, seen: Outputs) -> CrossAttention:
        """A decoder layer's cross-attention from the outputs of its projections."""

    def _offsets(self, states: Tensor) -> Tensor:
        """[L, B, Q, 4] float32 results of the box head on states [L, B, Q, D], never computed in less."""
        with torch.autocast(states.device.type, enabled=False):
            return self.model.bbox_predictor(states.to(self.model.dtype)).float()

    def _watched(self, capture_attention: bool) -> list[nn.Module]:
        always = [self._backbone, self.model.model.encoder, *self._layers]
        if not capture_attention:
            return always
        return always + [module for layer in self._layers for module in self._projections(layer)]

    def _states(self, outputs: Any, seen: Outputs) -> Tensor:
        """[L, B, Q, D] normalised decoder states, the last exactly the one transformers' heads see."""
        skipped = [index for index, layer in enumerate(self._layers) if layer not in seen]
        if skipped:
            raise ConfigError(
                f"Decoder layers {skipped} were skipped in this step (decoder_layerdrop="
                f"{self.model.config.decoder_layerdrop}), but every layer's predictions are needed. "
                "Set decoder_layerdrop to 0."
            )
        last = outputs.last_hidden_state[None]
        if self.num_layers == 1:
            return last
        earlier = torch.stack([self._state(seen[layer]) for layer in self._layers[:-1]])
        return torch.cat([self.model.model.decoder.layernorm(earlier), last])

    def _coarsest(self, output: Any) -> tuple[Tensor, Tensor]:
        """Feature map and mask of valid cells from what the backbone returned: pairs, coarsest last."""
        return output[-1]

    def _state(self, output: Any) -> Tensor:
        """[B, Q, D] from what a decoder layer returned."""
        return output

    def _attention(self, seen: Outputs, is_padding: Tensor) -> DenseAttentionMass:
        layers = tuple(self._cross_attention(layer, seen) for layer in self._layers)
        return DenseAttentionMass(layers, is_padding)

    def _check_stride(self, batch: Batch, is_padding: Tensor) -> None:
        (stride,) = self.strides
        expected = tuple(-(-size // stride) for size in batch.pixels.shape[-2:])
        if tuple(is_padding.shape[1:]) != expected:
            raise ConfigError(
                f"The backbone turned {tuple(batch.pixels.shape[-2:])} pixels into a map of "
                f"{tuple(is_padding.shape[1:])} cells; {expected} were expected at stride {stride}. "
                f"Use a {self.family} model whose backbone ends at stride {stride}."
            )


def add_positions(content: Tensor, position: Tensor | None) -> Tensor:
    """Content with positions added, in the layers that add them."""
    return content if position is None else content + position


def logit(probability: Tensor) -> Tensor:
    """Inverse of the sigmoid in float32, within ±11.5, as transformers' DETRs bound it."""
    return torch.logit(probability.float(), eps=1e-5)
