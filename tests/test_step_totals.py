from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from builders import batch_for, tiny_detr
from builders_trainer import adapter_of
from qskd.data.batch import Batch, Targets
from qskd.distiller import Distiller, StepTotals
from qskd.losses.set_prediction import SetPredictionLoss
from qskd.models.families.detr import DetrOriginalAdapter

QUERIES = 6


def batch_of(*counts: int) -> Batch:
    generator = torch.Generator().manual_seed(sum(counts))
    targets = Targets.from_lists(
        [torch.randint(0, 3, (count,), generator=generator) for count in counts],
        [torch.rand(count, 4, generator=generator) * 0.4 + 0.2 for count in counts],
    )
    pixels = torch.rand(len(counts), 3, 64, 64, generator=generator)
    content = torch.full((len(counts), 2), 64)
    return Batch(pixels, content, targets, tuple(range(len(counts))), ((64, 64),) * len(counts))


def test_totals_are_those_of_all_micro_batches():
    totals = StepTotals.of([batch_of(8, 1), batch_of(0)], [], num_queries=QUERIES)
    assert (totals.num_boxes, totals.num_images, totals.num_pairs) == (9.0, 3.0, 7.0)


def test_a_step_without_objects_divides_by_one_object_and_has_no_pair():
    totals = StepTotals.of([batch_of(0, 0)], [], num_queries=QUERIES)
    assert (totals.num_boxes, totals.num_pairs) == (1.0, 0.0)


@pytest.mark.parametrize("counts", [(3, 1), (0, 0), (QUERIES + 3, 2)], ids=["few", "none", "more than queries"])
def test_a_step_of_detr_costs_what_transformers_says(counts):
    torch.manual_seed(0)
    model = tiny_detr(num_queries=QUERIES, dropout=0.0, auxiliary_loss=True).train()
    adapter, batch = DetrOriginalAdapter(model), batch_of(*counts)
    distiller = Distiller(adapter, SetPredictionLoss.from_config(model.config))
    loss = distiller(batch, distiller.totals([batch], []))["loss"]
    theirs = model(pixel_values=adapter.normalise(batch), labels=batch.targets.as_huggingface()).loss
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)


def part_of(batch: Batch, images: Sequence[int]) -> Batch:
    targets = batch.targets
    own = Targets.from_lists(
        [targets.labels[image, : targets.counts[image]] for image in images],
        [targets.boxes[image, : targets.counts[image]] for image in images],
    )
    return replace(
        batch,
        pixels=batch.pixels[list(images)],
        content=batch.content[list(images)],
        targets=own,
        image_ids=tuple(batch.image_ids[image] for image in images),
        original_sizes=tuple(batch.original_sizes[image] for image in images),
    )


@pytest.mark.parametrize(
    ("family", "tolerance"), [("rt_detr", 1e-5), ("lw_detr", 1e-5), ("d_fine", 1e-3), ("deimv2", 1e-3)]
)
def test_micro_batches_of_families_with_a_loss_of_their_own_add_up(family, tolerance):
    """Without denoising and batch statistics. Parts of D-FINE's and DEIMv2's losses count more than objects."""
    torch.manual_seed(0)
    adapter = adapter_of(family)
    adapter.model.train()
    for module in adapter.model.modules():
        if isinstance(module, torch.nn.Dropout) or "Norm" in type(module).__name__:
            module.eval()
    for config in (adapter.model.config, adapter.model.model.config):
        config.num_denoising = 0
    distiller = Distiller(adapter, None)
    batch = batch_for(family, (6, 1), num_classes=2, padded=False)
    parts = [part_of(batch, [0]), part_of(batch, [1])]
    whole = distiller(batch, distiller.totals([batch], [None]))["loss"]
    totals = distiller.totals(parts, [None, None])
    summed = sum(distiller(part, totals)["loss"] for part in parts)
    torch.testing.assert_close(summed, whole, rtol=tolerance, atol=0)
