"""Evaluating a detector batch by batch, on one process or several."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object

from qskd.data.batch import Batch
from qskd.evaluation.coco_map import CocoEvaluator, CocoMetrics
from qskd.evaluation.detections import detections_of
from qskd.labels import LabelMap
from qskd.models.adapter import DetrAdapter
from qskd.models.relabel import to_student_classes


@torch.inference_mode()
def evaluate_detector(
    adapter: DetrAdapter,
    batches: Iterable[Batch],
    evaluator: CocoEvaluator,
    *,
    label_map: LabelMap | None = None,
    accelerator: Accelerator | PartialState | None = None,
    subset: bool = False,
) -> CocoMetrics:
    """COCO metrics of a model over all batches; every process returns the metrics of all of them.

    Nothing accumulates but detections. The model is put into eval mode and left in the mode it was in.

    Args:
        adapter: the model, on its device.
        batches: images with their ids and original sizes; of several processes, each has its share, perhaps none.
        evaluator: holds the ground truth; its class indices are the data's.
        label_map: from the data's classes to the model's; None when they are the same.
        accelerator: knows the other processes, whose detections are gathered.
        subset: the batches of all processes together are not all images of the ground truth.
    """
    was_training = adapter.model.training
    adapter.model.eval()
    device = next(adapter.model.parameters()).device
    for batch in batches:
        view = adapter.read(batch.to(device, non_blocking=True)).view
        if label_map is not None:
            view = to_student_classes(view, label_map)
        evaluator.add(batch.image_ids, detections_of(view, batch.original_sizes))
    adapter.model.train(was_training)
    if accelerator is not None and accelerator.num_processes > 1:
        states = gather_object([evaluator.state()])
        evaluator.reset()  # of an image that two processes saw, all of them keep the same detections
        evaluator.merge(states)
    return evaluator.result(subset=subset)
