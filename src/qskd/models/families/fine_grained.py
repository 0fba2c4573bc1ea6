"""What D-FINE and DEIMv2 have in common: boxes as distributions of edge distances, refined layer by layer."""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from qskd.errors import ConfigError
from qskd.models.families.hybrid_encoder import HybridEncoderAdapter, answer, denoising_queries
from qskd.models.hooks import training_flag


class FineGrainedAdapter(HybridEncoderAdapter):
    """Reads a detector of D-FINE's kind. A box may reach a little out of the image.

    The decoder says first what the first layer predicts before its distributions (an entry the view leaves
    out), then what every layer predicts; outside training it would say the last layer alone.

    ``own_loss`` is Hugging Face's loss with its pairing: entry k of logits and boxes, the first one counted,
    beside the distributions of layer k. It is that of training in evaluation mode too.

    Raises:
        ConfigError: predictions are taken from another layer than the last (transformers has no heads for
            the layers it then adds).
    """

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(model, **options)
        if self._config.eval_idx not in (-1, self._config.decoder_layers - 1):
            raise ConfigError(
                f"This {self.family} has eval_idx={self._config.eval_idx}, an early exit that transformers' own "
                "model cannot run. Set eval_idx to -1 in its config.json."
            )

    def _every_layer(self) -> AbstractContextManager[None]:
        return training_flag(self._network.decoder)

    def _layers(self, output: Any) -> tuple[Tensor, Tensor]:
        return output.intermediate_logits[:, 1:], output.intermediate_reference_points[:, 1:]

    def _predictions(self, output: Any) -> dict[str, Any]:
        skipped = denoising_queries(output)
        normal = slice(skipped, None)
        boxes = output.intermediate_reference_points[:, -1, normal].clamp(0, 1)
        predictions = answer(output.intermediate_logits[:, -1, normal], boxes)
        if self._config.auxiliary_loss:
            proposals = answer(output.enc_topk_logits, output.enc_topk_bboxes.clamp(0, 1))
            earlier = _refinements(output, normal, self.num_layers - 1)
            predictions["auxiliary_outputs"] = [*earlier, proposals]
            if skipped:
                noisy = _refinements(output, slice(0, skipped), self.num_layers)
                predictions["dn_auxiliary_outputs"] = noisy
                predictions["denoising_meta_values"] = output.denoising_meta_values
        return predictions


def _refinements(output: Any, queries: slice, layers: int) -> list[dict[str, Any]]:
    """The first ``layers`` entries with the distributions they are paired with, and the last layer's."""
    logits = output.intermediate_logits[:, :, queries]  # [B, 1 + L, Q, C]
    boxes = output.intermediate_reference_points[:, :, queries].clamp(0, 1)
    corners = output.intermediate_predicted_corners[:, :, queries]  # [B, L, Q, 4 x bins]
    origins = output.initial_reference_points[:, :, queries]
    last = {"teacher_corners": corners[:, -1], "teacher_logits": logits[:, -1]}
    return [
        answer(logits[:, entry], boxes[:, entry])
        | {"pred_corners": corners[:, entry], "ref_points": origins[:, entry]}
        | last
        for entry in range(layers)
    ]
