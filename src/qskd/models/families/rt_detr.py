"""RT-DETR (Zhao et al. 2023): sigmoid heads, each layer refines the box of the one before."""

from typing import Any, ClassVar

from transformers.loss.loss_rt_detr import RTDetrLoss

from qskd.models.families.hybrid_encoder import HybridEncoderAdapter, answer, denoising_queries


class RTDetrAdapter(HybridEncoderAdapter):
    """Reads ``RTDetrForObjectDetection``."""

    family: ClassVar[str] = "rt_detr"

    def _criterion(self) -> Any:
        return RTDetrLoss(self._config)

    def _predictions(self, output: Any) -> dict[str, Any]:
        skipped = denoising_queries(output)
        logits, boxes = output.intermediate_logits.unbind(1), output.intermediate_reference_points.unbind(1)
        normal = [answer(a[:, skipped:], b[:, skipped:]) for a, b in zip(logits, boxes, strict=True)]
        predictions = dict(normal[-1])
        if self._config.auxiliary_loss:
            proposals = answer(output.enc_topk_logits, output.enc_topk_bboxes)
            predictions["auxiliary_outputs"] = [*normal[:-1], proposals]
            if skipped:
                predictions["dn_auxiliary_outputs"] = [
                    answer(a[:, :skipped], b[:, :skipped]) for a, b in zip(logits, boxes, strict=True)
                ]
                predictions["denoising_meta_values"] = output.denoising_meta_values
        return predictions
