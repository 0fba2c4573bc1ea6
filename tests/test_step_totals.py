import pytest
import torch

from builders import tiny_detr
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
