"""Evaluating a detector batch by batch, on one process or several."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from qskd.data.batch import Batch
from qskd.evaluation.coco_map import CocoEvaluator, CocoMetrics, detections_of
from qskd.models.adapter import DetrAdapter


@torch.inference_mode()
def evaluate_detector(
    adapter: DetrAdapter,
    batches: Iterable[Batch],
    evaluator: CocoEvaluator,
    accelerator: Accelerator | None = None,
) -> CocoMetrics:
    """COCO metrics of a model over all batches; every process returns the metrics of all of them.

    Nothing accumulates but detections. The model is put into eval mode and left in the mode it was in.
    """
    was_training = adapter.model.training
    adapter.model.eval()
    device = next(adapter.model.parameters()).device
    for batch in batches:
        view = adapter.read(batch.to(device, non_blocking=True)).view
        evaluator.add(batch.image_ids, detections_of(view, batch.original_sizes))
    adapter.model.train(was_training)
    if accelerator is not None and accelerator.num_processes > 1:
        evaluator.merge(gather_object([evaluator.state()]))
    return evaluator.result()
