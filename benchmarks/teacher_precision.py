"""What a teacher says in other precisions: ``python benchmarks/teacher_precision.py --help``.

Compares the plain float32 teacher with the engine (norms folded, channels-last) and with bfloat16 (autocast around
either): AP, the share of queries that Group Query Selection gives the same role and owner, layer by layer, the share of
objects matched to the same query, and the greatest and mean differences of logits and boxes. Queries of two-stage
models, whose order says nothing, are compared with the nearest.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

sys.path.insert(0, str(Path(__file__).parent))

from step import folded

from qskd.data.batch import Batch, collate
from qskd.data.index import DetectionIndex
from qskd.data.transforms import ImageSize
from qskd.labels import LabelMap
from qskd.losses.term import Lesson
from qskd.models.adapter import DetrAdapter
from qskd.models.loading import as_teacher
from qskd.runs import building
from qskd.runs.evaluating import evaluate_adapter
from qskd.runs.options import SourceOptions
from qskd.selection.assignment import assign
from qskd.selection.groups import GroupQuerySelection, Role
from qskd.teacher import TeacherSide

Surroundings = Callable[[], AbstractContextManager[object]]


def agreement(plain: Lesson, other: Lesson) -> dict[str, Tensor]:
    """How alike two readings of one batch are; each value a sum over queries or objects, layer by layer."""
    one, two = plain.groups, other.groups
    same = (one.role == two.role) & (one.owner == two.owner)
    chosen = one.role != Role.EASY_NEGATIVE
    is_object = plain.targets.is_object.expand_as(one.match)
    logits = (plain.view.logits.float() - other.view.logits.float()).abs()
    boxes = (plain.view.boxes - other.view.boxes).abs()
    return {
        "queries": torch.full((len(same),), float(same[0].numel()), device=same.device),
        "same": same.sum((1, 2)).float(),
        "chosen": chosen.sum((1, 2)).float(),
        "same_chosen": (same & chosen).sum((1, 2)).float(),
        "objects": is_object.sum((1, 2)).float(),
        "same_match": ((one.match == two.match) & is_object).sum((1, 2)).float(),
        "mean_logit": logits.mean(-1).sum((1, 2)),
        "mean_box": boxes.mean(-1).sum((1, 2)),
        "greatest_logit": logits.amax((1, 2, 3)),
        "greatest_box": boxes.amax((1, 2, 3)),
    }


def in_the_order_of(plain: Lesson, other: Lesson) -> Lesson:
    """The other lesson, its queries in the places where the first one's nearest are.

    A two-stage model picks its queries by their scores, in the order of these, which says nothing about the objects.
    """
    said = [
        torch.cat([view.boxes, view.logits.float().sigmoid()], -1).permute(1, 2, 0, 3).flatten(2)  # [B, Q, L x (4 + C)]
        for view in (plain.view, other.view)
    ]
    order = assign(torch.cdist(said[0], said[1], p=1.0))  # [B, Q] which of the other's queries stands for each
    place = order.argsort(-1)  # the inverse
    view, groups = other.view, other.groups
    rows = order.expand(view.num_layers, -1, -1)
    match = place.expand(view.num_layers, -1, -1).gather(2, groups.match.clamp(min=0)).where(groups.match >= 0, -1)
    moved = replace(
        groups,
        role=groups.role.gather(2, rows),
        owner=groups.owner.gather(2, rows),
        giou=groups.giou.gather(2, rows),
        match=match,
    )
    logits = view.logits.gather(2, rows[..., None].expand_as(view.logits))
    boxes = view.boxes.gather(2, rows[..., None].expand_as(view.boxes))
    return replace(other, view=replace(view, logits=logits, boxes=boxes), groups=moved)


def compare(plain: DetrAdapter, other: DetrAdapter, around: Surroundings, batches: list[Batch]) -> dict[str, Any]:
    """Agreement on all batches, and how much faster the other is."""
    labels = LabelMap.between(plain.id2label, list(plain.id2label.values()))
    sides = [TeacherSide(adapter, labels, GroupQuerySelection(), {}) for adapter in (plain, other)]
    sums: dict[str, Tensor] = {}
    spent = [0.0, 0.0]
    for batch in batches:
        lessons = []
        for place, side in enumerate(sides):
            started = _now(batch.pixels.device)
            with around() if place else nullcontext():
                lessons.append(side.read(batch, capture_attention=False).lesson)
            spent[place] += _now(batch.pixels.device) - started
        if plain.picks_queries:
            lessons[1] = in_the_order_of(*lessons)
        for name, value in agreement(*lessons).items():
            before = sums.get(name, torch.zeros_like(value))
            sums[name] = torch.maximum(before, value) if name.startswith("greatest") else before + value
    return {
        "same role and owner": (sums["same"] / sums["queries"]).tolist(),
        "of selected queries": (sums["same_chosen"] / sums["chosen"].clamp(min=1)).tolist(),
        "same match": (sums["same_match"] / sums["objects"].clamp(min=1)).tolist(),
        "logits, mean and greatest": [float((sums["mean_logit"] / sums["queries"]).mean()), _most(sums, "logit")],
        "boxes, mean and greatest": [float((sums["mean_box"] / sums["queries"]).mean()), _most(sums, "box")],
        "speed": spent[0] / spent[1],
    }


def _now(device: torch.device) -> float:
    """Seconds: of the processor where it computes, else of the clock, with all done that was asked of the device."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def _most(sums: dict[str, Tensor], of: str) -> float:
    return float(sums[f"greatest_{of}"].max())


def main() -> None:
    """Measure every way to run the teacher, print a line each, write the results if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--image_size", type=int, required=True)
    parser.add_argument("--images", type=int, default=64, help="validation images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    index = building.open_splits(SourceOptions(data=options.data)).val
    if index is None:
        parser.error(f"{options.data} has no validation split")
    plain = as_teacher(building.open_model(options.teacher, None, box_frame="content"))
    size = ImageSize(square=options.image_size)
    batches = first_batches(index, size, options.images, device)
    engine = folded(plain, batches[0].to("cpu"))
    for adapter in (plain, engine):
        adapter.model.to(device)

    def bfloat16() -> AbstractContextManager[object]:
        return torch.autocast(device.type, dtype=torch.bfloat16)

    ways = {
        "plain float32": (plain, nullcontext),
        "engine float32": (engine, nullcontext),
        "plain bfloat16": (plain, bfloat16),
        "engine bfloat16": (engine, bfloat16),
    }
    results = {name: measure(plain, adapter, around, batches, index, size) for name, (adapter, around) in ways.items()}
    for name, found in results.items():
        print(name, json.dumps(_rounded(found)), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def first_batches(index: DetectionIndex, size: ImageSize, images: int, device: torch.device) -> list[Batch]:
    """Validation images in batches of 8."""
    dataset = building.evaluation_dataset(index, size)
    subset = Subset(dataset, building.evenly(range(len(dataset)), min(images, len(dataset))))
    return [batch.to(device) for batch in DataLoader(subset, batch_size=8, collate_fn=collate)]


def measure(
    plain: DetrAdapter,
    other: DetrAdapter,
    around: Surroundings,
    batches: list[Batch],
    index: DetectionIndex,
    size: ImageSize,
) -> dict[str, Any]:
    """Agreement with the plain teacher, and AP on as many images."""
    found = compare(plain, other, around, batches)
    with around():
        metrics = evaluate_adapter(other, index, size, 8, first=sum(len(batch) for batch in batches))
    return found | {"AP": metrics["AP"], "AP50": metrics["AP50"]}


def _rounded(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [float(f"{one:.5g}") for one in value] if isinstance(value, list) else float(f"{value:.5g}")
        for name, value in found.items()
    }


if __name__ == "__main__":
    main()
