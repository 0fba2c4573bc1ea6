import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d
from transformers import ResNetConfig

from builders_deformable import joined_batch, padded_batch, random_batch, tiny_deformable_detr
from qskd.data.batch import Batch
from qskd.models.adapter import DetrAdapter, MatchCosts, Need, PixelNorm
from qskd.models.families.deformable_detr import DeformableDetrAdapter
from qskd.models.hooks import record_calls

KINDS = {"plain": {}, "refined": {"refine": True}, "two-stage": {"two_stage": True}}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def adapter(request: pytest.FixtureRequest) -> DeformableDetrAdapter:
    torch.manual_seed(0)
    return DeformableDetrAdapter(tiny_deformable_detr(**request.param))


def test_every_layer_is_hugging_faces_own_answer(adapter: DeformableDetrAdapter) -> None:
    """Hugging Face shows the other layers only beside a loss, as ``auxiliary_outputs``."""
    batch = padded_batch(random_batch(size=(64, 64), counts=(2, 1)), (128, 64))
    adapter.model.config.auxiliary_loss = True
    with torch.no_grad():
        view = adapter.read(batch).view
        output = adapter.model(
            pixel_values=batch.pixels, pixel_mask=~batch.is_padding(), labels=batch.targets.as_huggingface()
        )
    assert torch.equal(view.logits[-1], output.logits)
    assert torch.equal(view.boxes[-1], output.pred_boxes)
    for layer, auxiliary in enumerate(output.auxiliary_outputs):
        assert torch.equal(view.logits[layer], auxiliary["logits"])
        assert torch.equal(view.boxes[layer], auxiliary["pred_boxes"])
    assert len(output.auxiliary_outputs) == view.num_layers - 1 == adapter.num_layers - 1


def test_levels_strides_and_padding_are_the_models_own(adapter: DeformableDetrAdapter) -> None:
    batch = padded_batch(random_batch(size=(64, 96)), (80, 160))
    decoder = adapter.model.model.decoder
    with torch.no_grad(), record_calls([decoder]) as calls:
        view = adapter.read(batch).view
    assert view.strides == adapter.strides == (8, 16, 32, 64)
    assert [tuple(level.shape[1:]) for level in view.memory] == [
        (32, 10, 20),
        (32, 5, 10),
        (32, 3, 5),
        (32, 2, 3),
    ]
    assert adapter.memory_channels == (32, 32, 32, 32)
    hidden = torch.cat([mask.flatten(1) for mask in view.is_padding], dim=1)
    assert torch.equal(hidden, ~calls[0]["encoder_attention_mask"])
    tokens = torch.cat([level.flatten(2) for level in view.memory], dim=2).transpose(1, 2)
    assert torch.equal(tokens, calls[0]["encoder_hidden_states"])
    assert view.is_padding[0][0, 8:].all()
    assert view.is_padding[0][0, :, 12:].all()
    assert not view.is_padding[0][0, :8, :12].any()
    assert adapter.provides == set(Need)


class PatchBackbone(torch.nn.Module):
    """Features of patches that do not overlap, so that nothing leaks out of the content."""

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        levels = []
        for stride, channels in ((8, 12), (16, 16), (32, 20)):
            patches = avg_pool2d(pixel_values, stride)
            weight = torch.randn(channels, 3, 1, 1, generator=torch.Generator().manual_seed(stride)) * 3
            levels.append((conv2d(patches, weight), pixel_mask[:, ::stride, ::stride]))
        return levels


def blind_to_padding(adapter: DeformableDetrAdapter) -> DeformableDetrAdapter:
    adapter.model.model.backbone = PatchBackbone()
    for projection in adapter.model.model.input_proj:
        projection[1] = torch.nn.Identity()
    return adapter


def without_picking_padding(adapter: DeformableDetrAdapter) -> DeformableDetrAdapter:
    """Hugging Face scores padding like any cell, by the bias alone: make that too low to become a query."""
    if adapter.model.config.two_stage:
        adapter.model.model.decoder.class_embed[-1].bias.data.fill_(-10.0)
    return adapter


def test_an_image_alone_and_padded_gives_the_same_view(adapter: DeformableDetrAdapter) -> None:
    """So boxes are fractions of the content.

    The backbone and group normalisation, which see padding, are replaced; the next test shows that they do.
    """
    alone, both = alone_and_padded()
    adapter = without_picking_padding(blind_to_padding(adapter))
    with torch.no_grad():
        small, large = (adapter.read(batch, capture_attention=True).view for batch in (alone, both))
    for level, padded, mask in zip(small.memory, large.memory, large.is_padding, strict=True):
        height, width = level.shape[-2:]
        torch.testing.assert_close(level[0], padded[0, :, :height, :width], atol=1e-4, rtol=1e-4)
        assert int((~mask[0]).sum()) == height * width
    torch.testing.assert_close(small.logits[:, 0], large.logits[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(small.boxes[:, 0], large.boxes[:, 0], atol=1e-4, rtol=1e-4)
    weights = torch.rand(3, 2, 10, generator=torch.Generator().manual_seed(0))
    kept = torch.cat([~mask[0].flatten() for mask in large.is_padding])
    mass, padded_mass = small.attention_mass(weights[:, :1]), large.attention_mass(weights)
    torch.testing.assert_close(mass[:, 0], padded_mass[:, 0, kept], atol=1e-4, rtol=1e-4)


def test_the_whole_model_sees_padding_by_itself(adapter: DeformableDetrAdapter) -> None:
    """If this ever fails, the test above no longer needs its replacements."""
    alone, both = alone_and_padded()
    with torch.no_grad():
        small, large = (without_picking_padding(adapter).read(batch).view for batch in (alone, both))
    assert (small.boxes[:, 0] - large.boxes[:, 0]).abs().max() > 1e-4


def alone_and_padded() -> tuple[Batch, Batch]:
    """An image, and the same image on a larger canvas beside one that fills it."""
    alone = random_batch(counts=(2,), size=(64, 128))
    other = random_batch(counts=(1,), size=(128, 192), seed=1)
    return alone, joined_batch(padded_batch(alone, (128, 192)), other)


def test_proposals_are_fractions_of_the_content() -> None:
    """With the box head silenced, a proposal is its cell: centre (column + 1/2) / columns of the content."""
    model = tiny_deformable_detr(two_stage=True)
    for parameter in model.model.decoder.bbox_embed[-1].parameters():
        parameter.data.zero_()
    adapter = DeformableDetrAdapter(model)
    batch = padded_batch(random_batch(size=(64, 128)), (128, 256))
    reading = adapter.read(batch, with_loss=True)
    assert reading.proposals is not None
    assert reading.proposals.logits.shape == (2, reading.view.num_tokens, 5)
    cell = 5 * 32 + 3  # row 5, column 3 of the finest level, whose canvas is 32 cells wide
    expected = torch.tensor([3.5 / 16, 5.5 / 8, 0.05, 0.05])
    torch.testing.assert_close(reading.proposals.boxes[0, cell], expected, atol=1e-5, rtol=0)


def test_canvas_frames_are_converted_for_boxes_and_proposals() -> None:
    model = tiny_deformable_detr(two_stage=True)
    batch = padded_batch(random_batch(size=(64, 96)), (128, 96))
    with torch.no_grad():
        content, canvas = (
            DeformableDetrAdapter(model, box_frame=frame).read(batch, with_loss=True) for frame in ("content", "canvas")
        )
    scale = torch.tensor([1.0, 2.0, 1.0, 2.0])
    torch.testing.assert_close(canvas.view.boxes, content.view.boxes * scale)
    assert content.proposals is not None
    assert canvas.proposals is not None
    torch.testing.assert_close(canvas.proposals.boxes, content.proposals.boxes * scale)


def test_only_two_stage_models_with_loss_have_proposals(adapter: DeformableDetrAdapter) -> None:
    two_stage = adapter.model.config.two_stage
    batch = random_batch()
    with torch.no_grad():
        assert (adapter.read(batch, with_loss=True).proposals is not None) == two_stage
        assert adapter.read(batch).proposals is None


def test_training_and_evaluation_give_the_same_shapes_and_gradient(adapter: DetrAdapter) -> None:
    batch = random_batch()
    evaluated = adapter.read(batch).view
    adapter.model.train()
    trained = adapter.read(batch, with_loss=True)
    assert trained.view.logits.shape == evaluated.logits.shape
    loss = trained.view.logits.square().sum() + trained.view.boxes.square().sum()
    if trained.proposals is not None:
        loss = loss + trained.proposals.logits.square().sum() + trained.proposals.boxes.square().sum()
    loss.backward()
    unused = [name for name, value in adapter.model.named_parameters() if value.requires_grad and value.grad is None]
    assert unused == []
    assert all(value.grad.isfinite().all() for value in adapter.model.parameters() if value.grad is not None)


def test_boxes_keep_float32_precision_inside_autocast(adapter: DeformableDetrAdapter) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = adapter.read(random_batch()).view.boxes
    assert boxes.dtype == torch.float32
    assert not torch.equal(boxes, boxes.bfloat16().float())


def test_refined_references_keep_float32_precision_inside_autocast() -> None:
    """A reference rounded to bfloat16 would move the next layer's sampling points by whole pixels."""
    adapter = DeformableDetrAdapter(tiny_deformable_detr(refine=True))
    second = adapter.model.model.decoder.layers[1].encoder_attn
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), record_calls([second]) as calls:
        adapter.read(random_batch())
    reference = calls[0]["reference_points"]
    assert not torch.equal(reference.float(), reference.bfloat16().float())


def test_padding_stays_zero_after_normalisation() -> None:
    adapter = DeformableDetrAdapter(tiny_deformable_detr(), pixel_norm=PixelNorm((0.5, 0.5, 0.5)))
    batch = padded_batch(random_batch(size=(64, 64)), (64, 128))
    with torch.no_grad(), record_calls([adapter.model.model.backbone]) as calls:
        adapter.read(batch)
    pixels = calls[0]["pixel_values"]
    assert (pixels[..., 64:] == 0).all()
    torch.testing.assert_close(pixels[..., :64], batch.pixels[..., :64] - 0.5)


def test_one_level_models_are_read() -> None:
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage4"],
    )
    adapter = DeformableDetrAdapter(tiny_deformable_detr(backbone_config=backbone, num_feature_levels=1))
    view = adapter.read(random_batch(size=(64, 96)), capture_attention=True).view
    assert view.strides == (32,)
    assert view.attention_mass(torch.ones(3, 2, 10)).shape == (3, 2, 6)


def test_measuring_strides_leaves_randomness_alone() -> None:
    """Also when the backbone draws random numbers, as one that drops paths does."""
    adapter = DeformableDetrAdapter(tiny_deformable_detr())

    def draw(*_: object) -> None:
        torch.rand(1)

    adapter.model.model.backbone.register_forward_hook(draw)
    before = torch.get_rng_state()
    assert adapter.strides == (8, 16, 32, 64)
    assert torch.equal(torch.get_rng_state(), before)


def test_match_costs_use_the_alpha_and_gamma_of_the_matcher() -> None:
    """Hugging Face's matcher fixes both; ``focal_alpha`` belongs to the loss."""
    adapter = DeformableDetrAdapter(tiny_deformable_detr(class_cost=2, focal_alpha=0.4))
    assert adapter.match_costs == MatchCosts("focal", 2, 5, 2, alpha=0.25, gamma=2.0)
