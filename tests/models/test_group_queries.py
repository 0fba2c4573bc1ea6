import pytest
import torch

from builders import MODELS, batch_for, image_of, random_batch
from builders_deformable import padded_batch
from qskd.errors import DataError
from qskd.models.adapter import MatchCosts, Need
from qskd.models.families import adapter_class
from qskd.models.families.group_queries import GroupQueriesAdapter
from qskd.models.hooks import record_calls

BOTH = pytest.mark.parametrize("family", ["lw_detr", "rf_detr"])


def adapter_of(family: str, **overrides: object) -> GroupQueriesAdapter:
    torch.manual_seed(0)
    return adapter_class(family)(MODELS[family](**overrides))


@BOTH
def test_the_view_of_training_is_the_first_of_all_groups(family: str) -> None:
    adapter, batch = adapter_of(family), batch_for(family)
    adapter.model.train()
    output = adapter.model(pixel_values=batch.pixels, pixel_mask=None)
    view = adapter.read(batch).view
    assert output.logits.shape[1] == 30
    torch.testing.assert_close(view.logits[-1], output.logits[:, :10])
    torch.testing.assert_close(view.boxes[-1], output.pred_boxes[:, :10])


@BOTH
def test_the_memory_is_what_the_decoder_attends_to(family: str) -> None:
    adapter, batch = adapter_of(family), batch_for(family)
    with torch.no_grad(), record_calls([adapter.model.model.decoder]) as calls:
        view = adapter.read(batch).view
    tokens = torch.cat([level.flatten(2) for level in view.memory], dim=2).transpose(1, 2)
    assert torch.equal(tokens, calls[0]["encoder_hidden_states"])
    assert adapter.memory_channels == tuple(level.shape[1] for level in view.memory)
    assert adapter.provides == set(Need)


@BOTH
def test_a_batch_without_objects_is_divided_by_the_groups(family: str) -> None:
    """All are background: p^2 x softplus(logit), summed over queries and classes of every group."""
    adapter = adapter_of(family)
    adapter.model.train()
    batch = batch_for(family, (0, 0))
    own = adapter.read(batch, with_loss=True).own_loss
    logits = adapter.model(pixel_values=batch.pixels).logits.double()
    background = (logits.sigmoid() ** 2 * torch.nn.functional.softplus(logits)).sum() / 3
    assert own is not None
    assert own.parts["loss_ce"].item() == pytest.approx(background.item(), rel=1e-4)
    assert own.parts["loss_bbox"] == own.parts["loss_giou"] == 0


@BOTH
def test_own_loss_is_the_sum_of_its_images_by_their_objects(family: str) -> None:
    """So that a step cut into micro-batches, one of them without objects, is the same step."""
    adapter = adapter_of(family)
    adapter.model.train()
    for module in adapter.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch = batch_for(family, (3, 0, 1))
    with torch.no_grad():
        whole = adapter.read(batch, with_loss=True).own_loss
        images = [adapter.read(image_of(batch, index), with_loss=True).own_loss for index in range(3)]
    assert whole is not None
    by_objects = sum(own.total * count for own, count in zip(images, (3, 1, 1), strict=True) if own)
    assert whole.total.item() * 4 == pytest.approx(float(by_objects), rel=1e-4)


@BOTH
def test_own_loss_follows_auxiliary_loss_switched_off(family: str) -> None:
    own = adapter_of(family, auxiliary_loss=False).read(batch_for(family, (2, 1)), with_loss=True).own_loss
    assert own is not None
    kinds = ("loss_ce", "loss_bbox", "loss_giou")
    assert own.parts.keys() == {*kinds, *(f"{kind}_enc" for kind in kinds)}


@BOTH
def test_own_loss_stays_finite_where_bfloat16_rounds_to_certainty(family: str) -> None:
    adapter = adapter_of(family)
    adapter.model.class_embed.bias.data.fill_(9.0)  # in bfloat16 its sigmoid is 1, and log(1 - 1) infinite
    adapter.model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = adapter.read(batch_for(family, (2, 1)), with_loss=True).own_loss
    assert own is not None
    assert own.total.isfinite()


@BOTH
def test_match_costs_come_from_the_configuration(family: str) -> None:
    assert adapter_of(family, class_cost=3, bbox_cost=4, giou_cost=1).match_costs == MatchCosts("focal", 3, 4, 1)


@BOTH
def test_padded_batches_are_refused(family: str) -> None:
    with pytest.raises(DataError, match="reads no padding mask"):
        adapter_of(family).read(padded_batch(random_batch(((64, 64),), (1,)), (96, 96)))


@BOTH
def test_sizes_that_windows_do_not_divide_are_refused(family: str) -> None:
    adapter = adapter_of(family)
    assert adapter.size_multiple == 32  # patches of 16 pixels, 2 windows along a side
    with pytest.raises(DataError, match=f"{family} was given images of 80x80 pixels.* multiples of 32"):
        adapter.read(random_batch(((80, 80),), (1,)))


def test_rf_detr_reads_squares_alone() -> None:
    """Its windows are cut by (columns, rows) and put together by (rows, columns)."""
    adapter = adapter_of("rf_detr")
    backbone = adapter.model.model.backbone.backbone
    tokens = torch.arange(1.0 + 4 * 6)[None, :, None].expand(1, -1, 16)
    cut = backbone.embeddings.window_partition(tokens.contiguous(), 64, 96)
    assert not torch.equal(backbone.window_unpartition(cut[:, 1:], 64, 96).flatten(), tokens[:, 1:].flatten())
    with pytest.raises(DataError, match=r"64x96 pixels.*square"):
        adapter.read(random_batch(((64, 96),), (1,)))


@pytest.mark.parametrize(("scales", "strides"), [((1.0,), (16,)), ((2.0, 0.5), (8, 32)), ((2.0, 1.0), (8, 16))])
def test_strides_of_lw_detr_are_a_patch_over_the_projectors_scale(
    scales: tuple[float, ...], strides: tuple[int, ...]
) -> None:
    adapter = adapter_of("lw_detr", projector_scale_factors=list(scales))
    view = adapter.read(batch_for("lw_detr"), capture_attention=True).view
    assert view.strides == strides
    assert [64 // level.shape[2] for level in view.memory] == list(strides)
