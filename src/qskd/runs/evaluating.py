"""Measuring a model on a split: `qskd eval`, and the last step of every run."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from qskd.data.batch import collate
from qskd.data.index import DetectionIndex
from qskd.data.transforms import ImageSize
from qskd.errors import ConfigError
from qskd.evaluation.coco_map import CocoEvaluator
from qskd.evaluation.detections import Detections, detections_of
from qskd.evaluation.kept import KeptDetections, as_evaluated
from qskd.evaluation.streaming import evaluate_detector
from qskd.labels import LabelMap
from qskd.models.adapter import DetrAdapter
from qskd.models.relabel import to_student_classes
from qskd.runs import building, image_sizes
from qskd.runs.options import ModelOptions, SourceOptions
from qskd.runs.processes import world


def evaluate(model: ModelOptions, data: SourceOptions, *, split: str = "val", batch_size: int = 8) -> dict[str, Any]:
    """COCO metrics of a trained model on a split, its classes matched to the data's by name."""
    if model.model is None:
        raise building.missing_option("--model", "a hub id or the folder of a trained model")
    if batch_size < 1:
        raise ConfigError(f"--batch_size is {batch_size}; give at least 1.")
    if split not in ("train", "val") and data.val_annotations is not None:
        raise ConfigError(
            f"--split {split} names a split of --data, but --val_annotations would be evaluated. Leave out one of them."
        )
    adapter = building.open_model(
        model.model, None, box_frame=model.box_frame, trust_remote_code=model.trust_remote_code
    )
    index = building.open_split(data, split)
    if index is None:
        raise ConfigError(f"The data has no split '{split}'.")
    size = image_sizes.choose_size(data, [adapter], [model.model])
    processes = launched()
    adapter.model.to(processes.device if processes else "cuda" if torch.cuda.is_available() else "cpu")
    return evaluate_keeping(adapter, index, size, batch_size, processes=processes)[0]


def launched() -> PartialState | None:
    """The processes that torchrun or accelerate launch started, connected; None where this one is alone."""
    if world() < 2:
        return None
    return PartialState(cpu=not torch.cuda.is_available())


def evaluate_adapter(
    adapter: DetrAdapter,
    index: DetectionIndex,
    size: ImageSize,
    batch_size: int,
    *,
    first: int | None = None,
) -> dict[str, Any]:
    """COCO metrics as plain values; ``first`` limits them to so many images, evenly spread."""
    return evaluate_keeping(adapter, index, size, batch_size, first=first)[0]


def evaluate_keeping(
    adapter: DetrAdapter,
    index: DetectionIndex,
    size: ImageSize,
    batch_size: int,
    *,
    first: int | None = None,
    processes: PartialState | None = None,
) -> tuple[dict[str, Any], KeptDetections]:
    """COCO metrics as plain values, and the detections that they were measured on.

    Args:
        adapter: the model, on its device.
        index: the split.
        size: of the images that the model is given.
        batch_size: images at a time.
        first: only so many images, evenly spread.
        processes: all of them call this; each asks the model about its share, and returns what comes of all shares.
    """
    label_map = LabelMap.between(adapter.id2label, index.class_names)
    dataset = building.evaluation_dataset(index, size)
    chosen = building.evenly(range(len(dataset)), first if first is not None else len(dataset))
    rank, count = (processes.process_index, processes.num_processes) if processes else (0, 1)
    batches = DataLoader(Subset(dataset, chosen[rank::count]), batch_size=batch_size, collate_fn=collate)
    truth = index.ground_truth()
    evaluator = CocoEvaluator(truth, index.category_ids)
    metrics = evaluate_detector(
        adapter,
        tqdm(batches, desc="eval", leave=False, disable=None if rank == 0 else True),
        evaluator,
        label_map=label_map,
        accelerator=processes,
        subset=first is not None,
    )
    return metrics.as_dict(), as_evaluated(truth, index.class_names, evaluator.state())


@torch.inference_mode()
def detections_on(
    adapter: DetrAdapter, index: DetectionIndex, size: ImageSize, positions: Sequence[int]
) -> dict[int, Detections]:
    """What a model finds on a few images, by image id, in the classes of the data; the model's mode stays as it was."""
    label_map = LabelMap.between(adapter.id2label, index.class_names)
    dataset = building.evaluation_dataset(index, size)
    device = next(adapter.model.parameters()).device
    was_training = adapter.model.training
    adapter.model.eval()
    found: dict[int, Detections] = {}
    for position in positions:
        batch = collate([dataset[position]]).to(device)
        view = to_student_classes(adapter.read(batch).view, label_map)
        found[batch.image_ids[0]] = detections_of(view, batch.original_sizes)[0]
    adapter.model.train(was_training)
    return found
