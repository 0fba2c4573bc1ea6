"""What trained models find on a few images, drawn: for reports and the demo."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from qskd.data.batch import collate
from qskd.data.images import read_image
from qskd.data.index import DetectionIndex
from qskd.data.transforms import ImageSize
from qskd.evaluation.coco_map import detections_of
from qskd.labels import LabelMap
from qskd.models.adapter import DetrAdapter
from qskd.models.relabel import to_student_classes
from qskd.reporting.pictures import Objects, draw_objects, shown
from qskd.runs import building

_AT_A_TIME = 8  # images in one forward pass


@dataclass(frozen=True, slots=True)
class Column:
    """What is drawn under one title: the data's labels, or what a model found."""

    title: str
    objects: tuple[Objects, ...]  # of each image


def evenly_chosen(index: DetectionIndex, count: int) -> list[int]:
    """Positions of at most ``count`` images, evenly spread over those that hold objects (or over all)."""
    filled = [position for position in range(len(index)) if len(index.labels(position))]
    return building.evenly(filled or range(len(index)), count)


def labelled(index: DetectionIndex, positions: Sequence[int]) -> Column:
    """The objects that the data says are there."""
    found = [
        Objects(tuple(index.labels(position).tolist()), tuple(tuple(box) for box in index.boxes(position).tolist()))
        for position in positions
    ]
    return Column("ground truth", tuple(found))


@torch.inference_mode()
def detected(
    title: str, adapter: DetrAdapter, index: DetectionIndex, size: ImageSize, positions: Sequence[int]
) -> Column:
    """What a model finds, in the classes of the data.

    Raises:
        LabelMapError: the model knows none of them.
    """
    label_map = LabelMap.between(adapter.id2label, index.class_names)
    dataset = building.evaluation_dataset(index, size)
    adapter.model.eval()
    device = next(adapter.model.parameters()).device
    found: list[Objects] = []
    for start in range(0, len(positions), _AT_A_TIME):
        batch = collate([dataset[position] for position in positions[start : start + _AT_A_TIME]]).to(device)
        view = to_student_classes(adapter.read(batch).view, label_map)
        found += [shown(one) for one in detections_of(view, batch.original_sizes)]
    return Column(title, tuple(found))


def drawn(index: DetectionIndex, positions: Sequence[int], columns: Sequence[Column]) -> list[list[Image.Image]]:
    """One row for each image, one panel in it for each column."""
    rows = []
    for row, position in enumerate(positions):
        record = index.images[position]
        pixels = read_image(record)
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        rows.append([draw_objects(image, column.objects[row], index.class_names) for column in columns])
    return rows
