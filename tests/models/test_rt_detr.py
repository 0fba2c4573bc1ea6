import pytest
import torch
from transformers.loss.loss_rt_detr import RTDetrLoss

from builders_deformable import padded_batch, random_batch, tiny_rt_detr
from qskd.errors import ConfigError, DataError
from qskd.models.adapter import MatchCosts, Need, PixelNorm
from qskd.models.families.rt_detr import RTDetrAdapter


@pytest.fixture
def adapter() -> RTDetrAdapter:
    torch.manual_seed(0)
    return RTDetrAdapter(tiny_rt_detr())


def test_last_layer_is_hugging_faces_own_answer(adapter: RTDetrAdapter) -> None:
    batch = random_batch()
    with torch.no_grad():
        view = adapter.read(batch).view
        output = adapter.model(pixel_values=batch.pixels)
    assert torch.equal(view.logits[-1], output.logits)
    assert torch.equal(view.boxes[-1], output.pred_boxes)
    assert view.attention is None


def test_every_layer_is_its_heads_answer(adapter: RTDetrAdapter) -> None:
    batch = random_batch()
    with torch.no_grad():
        view = adapter.read(batch).view
        output = adapter.model(pixel_values=batch.pixels)
        decoder = adapter.model.model.decoder
        for index, head in enumerate(decoder.class_embed):
            expected = head(output.intermediate_hidden_states[:, index])
            torch.testing.assert_close(view.logits[index], expected)
        torch.testing.assert_close(view.boxes.transpose(0, 1), output.intermediate_reference_points)
    assert not torch.allclose(view.boxes[0], view.boxes[1])


def test_memory_is_the_hybrid_encoders_maps(adapter: RTDetrAdapter) -> None:
    view = adapter.read(random_batch(size=(64, 96))).view
    assert view.strides == adapter.strides == (8, 16, 32)
    assert [tuple(level.shape) for level in view.memory] == [(2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]
    assert adapter.memory_channels == (16, 16, 16)
    assert not any(mask.any() for mask in view.is_padding)
    assert adapter.provides == set(Need)


def test_pixels_are_normalised(adapter: RTDetrAdapter) -> None:
    norm = PixelNorm(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    batch = random_batch()
    pixels = (batch.pixels - torch.tensor(norm.mean)[:, None, None]) / torch.tensor(norm.std)[:, None, None]
    with torch.no_grad():
        view = RTDetrAdapter(adapter.model, pixel_norm=norm).read(batch).view
        assert torch.equal(view.logits[-1], adapter.model(pixel_values=pixels).logits)


@pytest.mark.parametrize("counts", [(3, 2), (3, 0), (0, 0)], ids=["objects", "one image empty", "all empty"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_own_loss_sums_its_parts_and_denoising_stays_out_of_the_view(
    adapter: RTDetrAdapter, counts: tuple[int, ...], training: bool
) -> None:
    adapter.model.train(training)
    reading = adapter.read(random_batch(counts=counts), with_loss=True, capture_attention=True)
    assert reading.view.logits.shape == (3, 2, 20, 5)
    assert reading.view.boxes.shape == (3, 2, 20, 4)
    assert reading.own_loss is not None
    assert any("_dn_" in name for name in reading.own_loss.parts) == (training and sum(counts) > 0)
    total = reading.own_loss.total
    assert total.isfinite()
    assert total.item() == pytest.approx(sum(part.item() for part in reading.own_loss.parts.values()), rel=1e-5)
    total.backward()
    if training:
        assert [name for name, value in adapter.model.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_own_loss_is_hugging_faces(adapter: RTDetrAdapter, training: bool) -> None:
    batch = random_batch(counts=(3, 0))
    labels = batch.targets.as_huggingface()
    adapter.model.train(training)
    torch.manual_seed(7)
    reading = adapter.read(batch, with_loss=True)
    torch.manual_seed(7)
    output = adapter.model(pixel_values=batch.pixels, labels=labels)
    assert reading.own_loss is not None
    expected = dict(output.loss_dict)
    if training:  # some releases of transformers let denoising queries into the last layer's own loss
        expected |= RTDetrLoss(adapter.model.config)(
            {"logits": reading.view.logits[-1], "pred_boxes": reading.view.boxes[-1]}, labels
        )
    assert reading.own_loss.parts.keys() == expected.keys()
    for name, part in reading.own_loss.parts.items():
        torch.testing.assert_close(part, expected[name], msg=name)


def test_own_loss_without_objects_asks_every_query_for_background(adapter: RTDetrAdapter) -> None:
    """With no object, varifocal loss is alpha x p^gamma x softplus(logit) over all queries, divided by 1."""
    reading = adapter.read(random_batch(counts=(0, 0)), with_loss=True)
    assert reading.own_loss is not None
    logits = reading.view.logits.double()
    per_layer = (0.75 * logits.sigmoid() ** 2 * torch.nn.functional.softplus(logits)).sum((1, 2, 3))
    parts = reading.own_loss.parts
    assert parts["loss_vfl"].item() == pytest.approx(per_layer[2].item(), rel=1e-5)
    assert parts["loss_vfl_aux_0"].item() == pytest.approx(per_layer[0].item(), rel=1e-5)
    assert "loss_vfl_aux_2" in parts  # the encoder's proposals
    assert parts["loss_bbox"] == parts["loss_giou"] == 0


def test_own_loss_follows_auxiliary_loss_switched_off() -> None:
    adapter = RTDetrAdapter(tiny_rt_detr(auxiliary_loss=False))
    for counts in ((2, 1), (0, 0)):
        own = adapter.read(random_batch(counts=counts), with_loss=True).own_loss
        assert own is not None
        assert own.parts.keys() == {"loss_vfl", "loss_bbox", "loss_giou"}


def test_the_view_in_training_ignores_the_objects() -> None:
    """Normal queries cannot see denoising queries, so the view is the same with and without them."""
    adapter = RTDetrAdapter(tiny_rt_detr())
    adapter.model.train()
    batch = random_batch(counts=(3, 1))
    for module in adapter.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with_objects = adapter.read(batch, with_loss=True, capture_attention=True).view
    without = adapter.read(batch, capture_attention=True).view
    torch.testing.assert_close(with_objects.logits, without.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(with_objects.boxes, without.boxes, atol=1e-5, rtol=1e-4)
    weights = torch.rand(3, 2, 20)
    torch.testing.assert_close(
        with_objects.attention_mass(weights), without.attention_mass(weights), atol=1e-4, rtol=1e-4
    )


def test_gradient_reaches_the_backbone(adapter: RTDetrAdapter) -> None:
    adapter.model.train()
    view = adapter.read(random_batch()).view
    (view.logits.sum() + view.boxes.square().sum() + sum(level.sum() for level in view.memory)).backward()
    gradients = [value.grad for value in adapter.model.model.backbone.parameters()]
    assert all(gradient is not None for gradient in gradients)


def test_boxes_keep_float32_precision_inside_autocast(adapter: RTDetrAdapter) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = adapter.read(random_batch()).view.boxes
    assert boxes.dtype == torch.float32
    assert not torch.equal(boxes, boxes.bfloat16().float())


def test_extra_decoder_levels_are_no_part_of_the_memory() -> None:
    adapter = RTDetrAdapter(tiny_rt_detr(num_feature_levels=4))
    view = adapter.read(random_batch(), capture_attention=True).view
    assert len(view.memory) == 3
    assert view.attention_mass(torch.ones(3, 2, 20)).shape == (3, 2, view.num_tokens)


def test_padded_batches_are_refused(adapter: RTDetrAdapter) -> None:
    with pytest.raises(DataError, match="reads no padding mask"):
        adapter.read(padded_batch(random_batch(), (96, 96)))


def test_sizes_that_do_not_fit_the_strides_are_refused(adapter: RTDetrAdapter) -> None:
    with pytest.raises(DataError, match="multiples of 32"):
        adapter.read(random_batch(size=(64, 80)))


def test_sizes_other_than_the_fixed_anchors_are_refused_in_eval_alone() -> None:
    adapter = RTDetrAdapter(tiny_rt_detr(anchor_image_size=[64, 64]))
    adapter.read(random_batch(size=(64, 64)))
    with pytest.raises(DataError, match="anchor_image_size"):
        adapter.read(random_batch(size=(64, 96)))
    adapter.model.train()
    adapter.read(random_batch(size=(64, 96)))


def test_match_costs_come_from_the_configuration() -> None:
    adapter = RTDetrAdapter(tiny_rt_detr(matcher_class_cost=3.0, matcher_alpha=0.3, matcher_gamma=1.5))
    assert adapter.match_costs == MatchCosts("focal", 3.0, 5.0, 2.0, alpha=0.3, gamma=1.5)


def test_a_softmax_matcher_is_refused() -> None:
    with pytest.raises(ConfigError, match="use_focal_loss"):
        _ = RTDetrAdapter(tiny_rt_detr(use_focal_loss=False)).match_costs
