"""What every adapter promises, asked of every family in a tiny random form."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

from builders import (
    FAMILY_OF,
    MODELS,
    NUM_CLASSES,
    batch_for,
    image_of,
    random_batch,
    size_for,
    stop_leaks_from_padding,
)
from qskd.data.batch import Batch
from qskd.errors import DataError
from qskd.models.adapter import DetrAdapter, Need
from qskd.models.families import FAMILIES, adapter_class
from qskd.models.initialising import backbone_of
from qskd.models.view import DetrView

EVERY_FAMILY = pytest.mark.parametrize("family", MODELS)
OWN_LOSS = pytest.mark.parametrize(
    "family", [name for name in MODELS if adapter_class(FAMILY_OF[name]).trains_with == "own"]
)
BOTH_MODES = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
UNBOUNDED = {"d_fine", "deimv2", "lw_detr", "rf_detr"}  # families whose boxes go through no sigmoid
# Older transformers let denoising queries compete for the objects of the last layer.
DENOISING_COMPETES = Version(transformers.__version__) < Version("5.23")
ROUNDING = {"rtol": 0.0, "atol": 2e-6}  # float64 networks, float32 boxes and masses


def adapter_of(family: str, *, seed: int = 0, **overrides: Any) -> DetrAdapter:
    """The adapter of a tiny model in eval mode; the same one in whatever order tests run."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[family](**overrides)
    return adapter_class(model.config.model_type)(model.eval())


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision where nothing is said: batches of other sizes are summed in another order."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def full_logits(view: DetrView) -> Tensor:
    """[L, B, Q, C or C + 1] as the model's own head gives them, no-object last."""
    return view.logits if view.no_object is None else torch.cat([view.logits, view.no_object[..., None]], -1)


def own_outputs(adapter: DetrAdapter, batch: Batch, **extra: Any) -> Any:
    """What transformers' own forward returns for the same pixels and mask."""
    return adapter.model(pixel_values=adapter.normalise(batch), pixel_mask=(~batch.is_padding()).long(), **extra)


def auxiliary_outputs(adapter: DetrAdapter, batch: Batch) -> list[dict[str, Tensor]]:
    """What transformers' own forward says of every layer but the last."""
    decoder = adapter.model.model.decoder
    distributions = hasattr(decoder, "pre_bbox_head")
    decoder.training = distributions  # D-FINE and DEIMv2 say it in training alone, after an entry of their own
    own = own_outputs(adapter, batch, labels=batch.targets.as_huggingface())
    decoder.training = False
    if not distributions:
        return own.auxiliary_outputs
    layers = zip(own.intermediate_logits.unbind(1), own.intermediate_reference_points.unbind(1), strict=True)
    return [{"logits": logits, "pred_boxes": boxes} for logits, boxes in layers][1:-1]


def padding_of(view: DetrView) -> Tensor:
    """[B, S] bool over all levels."""
    return torch.cat([mask.flatten(1) for mask in view.is_padding], dim=1)


def batches_it_reads(family: str, adapter: DetrAdapter) -> list[Batch]:
    """An unpadded batch, and a padded one for families that take it."""
    padded = [random_batch(((64, 96), (96, 64)), (3, 1))] if adapter.reads_padding else []
    return [batch_for(family), *padded]


def test_every_supported_family_is_asked() -> None:
    assert set(FAMILY_OF.values()) == set(FAMILIES)
    assert all(MODELS[name]().config.model_type == family for name, family in FAMILY_OF.items())


@EVERY_FAMILY
def test_the_last_layer_is_what_transformers_returns(family: str) -> None:
    adapter = adapter_of(family)
    for batch in batches_it_reads(family, adapter):
        with torch.no_grad():
            view, own = adapter.read(batch).view, own_outputs(adapter, batch)
        torch.testing.assert_close(full_logits(view)[-1], own.logits, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(view.boxes[-1], own.pred_boxes, rtol=0.0, atol=1e-6)


@EVERY_FAMILY
def test_earlier_layers_are_the_auxiliary_outputs_of_transformers(family: str) -> None:
    adapter = adapter_of(family, auxiliary_loss=True)
    for batch in batches_it_reads(family, adapter):
        with torch.no_grad():
            view = adapter.read(batch).view
            own = auxiliary_outputs(adapter, batch)
        assert len(own) >= view.num_layers - 1 > 0
        for layer in range(view.num_layers - 1):
            expected = own[layer]
            torch.testing.assert_close(full_logits(view)[layer], expected["logits"], rtol=0.0, atol=1e-6)
            torch.testing.assert_close(view.boxes[layer], expected["pred_boxes"], rtol=0.0, atol=1e-6)


@EVERY_FAMILY
@BOTH_MODES
@pytest.mark.parametrize("with_loss", [False, True], ids=["no-loss", "with-loss"])
def test_shapes_are_those_the_adapter_announces(family: str, training: bool, with_loss: bool) -> None:
    adapter = adapter_of(family)
    adapter.model.train(training)
    batch = batch_for(family)
    with torch.no_grad():
        view = adapter.read(batch, with_loss=with_loss, capture_attention=True).view
    queries = 10 if family != "rt_detr" else 20
    assert view.logits.shape == (adapter.num_layers, 2, queries, NUM_CLASSES)
    assert view.strides == adapter.strides
    assert tuple(level.shape[1] for level in view.memory) == adapter.memory_channels
    grids = [tuple(-(-side // stride) for side in size_for(family)) for stride in adapter.strides]
    assert [tuple(level.shape[2:]) for level in view.memory] == grids
    assert view.attention_mass(torch.ones(view.logits.shape[:3])).shape == (3, 2, view.num_tokens)


@EVERY_FAMILY
@BOTH_MODES
def test_boxes_are_fractions(family: str, training: bool) -> None:
    adapter = adapter_of(family)
    adapter.model.train(training)
    boxes = adapter.read(batch_for(family), with_loss=training).view.boxes
    assert boxes.dtype == torch.float32
    assert boxes[..., 2:].min() > (-0.01 if hasattr(adapter.model.model.decoder, "pre_bbox_head") else 0.0)
    reach = 0.0 if FAMILY_OF[family] not in UNBOUNDED else 0.5
    assert -reach <= boxes.min() < boxes.max() <= 1.0 + reach
    assert boxes.std() > 1e-3  # the tiny model says different things


@EVERY_FAMILY
def test_boxes_of_the_canvas_become_fractions_of_the_content(family: str) -> None:
    content = adapter_of(family)
    if not content.reads_padding:
        pytest.skip("its images are never padded")
    canvas = type(content)(content.model, box_frame="canvas")
    batch = random_batch(((64, 96), (96, 64)))
    with torch.no_grad():
        scale = canvas.read(batch).view.boxes / content.read(batch).view.boxes
    # 96 x 96 canvas: the first image fills 64 of 96 rows, the second 64 of 96 columns
    torch.testing.assert_close(scale[0, 0, 0], torch.tensor([1.0, 1.5, 1.0, 1.5]))
    torch.testing.assert_close(scale[-1, 1, -1], torch.tensor([1.5, 1.0, 1.5, 1.0]))


@EVERY_FAMILY
@pytest.mark.usefixtures("float64")
def test_a_batch_of_two_equals_two_batches_of_one(family: str) -> None:
    adapter = adapter_of(family)
    for batch in batches_it_reads(family, adapter):
        weights = torch.rand(adapter.num_layers, 2, adapter.read(batch).view.num_queries)
        with torch.no_grad():
            both = adapter.read(batch, capture_attention=True).view
            for index in range(2):
                one = adapter.read(image_of(batch, index), capture_attention=True).view
                assert_same_image(both, index, one)
                mass = one.attention_mass(weights[:, index : index + 1])[:, 0]
                torch.testing.assert_close(both.attention_mass(weights)[:, index], mass, **ROUNDING)


def assert_same_image(batch: DetrView, index: int, alone: DetrView) -> None:
    """One image of a batch says the same as alone."""
    torch.testing.assert_close(full_logits(batch)[:, index], full_logits(alone)[:, 0], **ROUNDING)
    torch.testing.assert_close(batch.boxes[:, index], alone.boxes[:, 0], **ROUNDING)
    for level, own in zip(batch.memory, alone.memory, strict=True):
        rows, columns = own.shape[2:]
        torch.testing.assert_close(level[index, :, :rows, :columns], own[0], **ROUNDING)


@EVERY_FAMILY
@pytest.mark.usefixtures("float64")
def test_padding_changes_nothing_or_is_refused(family: str) -> None:
    adapter = adapter_of(family)
    batch = random_batch(((64, 128), (128, 64)), (1, 1))
    if not adapter.reads_padding:
        with pytest.raises(DataError, match="padd"):
            adapter.read(batch)
        return
    adapter = type(adapter)(stop_leaks_from_padding(adapter.model))
    with torch.no_grad():
        padded = adapter.read(batch, capture_attention=True).view
        for index in range(2):
            alone = adapter.read(image_of(batch, index, cropped=True), capture_attention=True).view
            assert_same_image(padded, index, alone)
            weights = torch.rand(adapter.num_layers, 2, padded.num_queries)
            mass = padded.attention_mass(weights)[:, index][:, ~padding_of(padded)[index]]
            own = alone.attention_mass(weights[:, index : index + 1])[:, 0]
            kept = mass.shape[1] == own.shape[1]  # the coarsest level may round a half cell up
            torch.testing.assert_close(mass if kept else mass.sum(-1), own if kept else own.sum(-1), **ROUNDING)


@EVERY_FAMILY
def test_padding_is_told_cell_by_cell(family: str) -> None:
    adapter = adapter_of(family)
    if not adapter.reads_padding:
        assert not padding_of(adapter.read(batch_for(family)).view).any()
        return
    view = adapter.read(random_batch(((64, 128), (128, 64)))).view
    for mask, stride in zip(view.is_padding, adapter.strides, strict=True):
        rows, columns = 64 // stride, 128 // stride
        assert mask[0].any(1).tolist() == [False] * rows + [True] * (mask.shape[1] - rows)
        assert mask[1].any(0).tolist() == [False] * rows + [True] * (columns - rows)


@EVERY_FAMILY
def test_attention_mass_obeys_its_contract(family: str) -> None:
    adapter = adapter_of(family)
    for batch in batches_it_reads(family, adapter):
        with torch.no_grad():
            view = adapter.read(batch, capture_attention=True).view
        shape = view.logits.shape[:3]
        first, second = torch.rand(shape), torch.rand(shape) * (torch.rand(shape) > 0.6)
        mass = view.attention_mass(first)
        assert mass.dtype == torch.float32
        assert not view.attention_mass(torch.zeros(shape)).any()
        assert mass.min() >= 0
        assert not mass[:, padding_of(view)].any()
        assert (mass.sum(-1) <= first.sum(-1) * (1 + 1e-5)).all()
        assert mass.sum() > 0.2 * first.sum()
        together = view.attention_mass(2 * first + 3 * second)
        torch.testing.assert_close(together, 2 * mass + 3 * view.attention_mass(second), rtol=1e-5, atol=1e-6)


@EVERY_FAMILY
def test_each_query_layer_and_image_keeps_its_own_attention(family: str) -> None:
    adapter = adapter_of(family)
    with torch.no_grad():
        view = adapter.read(batch_for(family), capture_attention=True).view
    weights = torch.zeros(view.logits.shape[:3])
    weights[1, 0, 4] = 1.0
    mass = view.attention_mass(weights)
    assert mass[1, 0].sum() > 0
    assert not mass[[0, 2]].any()
    assert not mass[1, 1].any()
    other = view.attention_mass(weights.roll(1, dims=2))
    assert not torch.equal(mass, other)


@EVERY_FAMILY
def test_attention_is_there_only_if_asked_for(family: str) -> None:
    adapter = adapter_of(family)
    view = adapter.read(batch_for(family)).view
    with pytest.raises(ValueError, match="capture_attention"):
        view.attention_mass(torch.ones(view.logits.shape[:3]))


@EVERY_FAMILY
def test_what_it_claims_to_provide_is_there(family: str) -> None:
    adapter = adapter_of(family)
    view = adapter.read(batch_for(family), capture_attention=True).view
    assert (Need.MEMORY in adapter.provides) == (len(view.memory) > 0)
    assert (Need.ATTENTION in adapter.provides) == (view.attention is not None)
    assert (Need.PREDICTIONS in adapter.provides) == (view.num_layers == adapter.num_layers)
    assert adapter.match_costs.kind == ("softmax" if view.no_object is not None else "focal")
    assert list(adapter.id2label) == list(range(NUM_CLASSES))


@EVERY_FAMILY
@pytest.mark.parametrize("part", ["logits", "boxes", "memory"])
def test_a_gradient_reaches_the_backbone(family: str, part: str) -> None:
    # First weights may happen to leave none of so few channels alive: one of a few models must let a gradient through.
    assert max(gradient_at_the_backbone(family, part, seed) for seed in range(4)) > 0


def gradient_at_the_backbone(family: str, part: str, seed: int) -> float:
    adapter = adapter_of(family, seed=seed)
    adapter.model.requires_grad_(True)
    adapter.model.train()
    view = adapter.read(batch_for(family)).view
    value = view.memory[0] if part == "memory" else getattr(view, part)
    value.square().sum().backward()
    gradients = [parameter.grad for parameter in backbone_of(adapter.model).parameters()]
    return sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None)


def traces(model: nn.Module) -> list[Any]:
    """What a careless reading would leave behind: hooks, modes, replaced methods."""
    return [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), module.training, set(vars(module)))
        for name, module in model.named_modules()
    ]


@EVERY_FAMILY
@BOTH_MODES
def test_reading_leaves_the_model_as_it_was(family: str, training: bool) -> None:
    adapter = adapter_of(family)
    adapter.model.train(training)
    batch_norms = {
        name for name, module in adapter.model.named_modules() if isinstance(module, nn.BatchNorm2d) and training
    }
    weights = {name: tensor.clone() for name, tensor in adapter.model.state_dict().items()}
    config, hooks = adapter.model.config.to_dict(), traces(adapter.model)
    view = adapter.read(batch_for(family), capture_attention=True, with_loss=training).view
    view.attention_mass(torch.ones(view.logits.shape[:3]))
    assert adapter.model.config.to_dict() == config
    assert traces(adapter.model) == hooks
    for name, tensor in adapter.model.state_dict().items():
        if name.rpartition(".")[0] not in batch_norms:  # training moves running statistics
            assert torch.equal(tensor, weights[name]), name


@EVERY_FAMILY
def test_hooks_are_gone_after_an_error(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_of(family)

    def fail(*_: Any, **__: Any) -> None:
        raise ArithmeticError("out of luck")

    monkeypatch.setattr(adapter.model.model.decoder.layers[-1], "forward", fail)
    before = traces(adapter.model)
    with pytest.raises(ArithmeticError, match="out of luck"):
        adapter.read(batch_for(family), capture_attention=True)
    assert traces(adapter.model) == before


@EVERY_FAMILY
@BOTH_MODES
def test_bfloat16_stays_finite_and_close(family: str, training: bool) -> None:
    adapter = adapter_of(family)
    adapter.model.train(training)
    batch = batch_for(family)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        view = adapter.read(batch, capture_attention=True, with_loss=training).view
    mass = view.attention_mass(torch.ones(view.logits.shape[:3]))
    assert all(torch.isfinite(value).all() for value in (view.logits, view.boxes, mass, *view.memory))
    assert mass.dtype == view.boxes.dtype == torch.float32


@OWN_LOSS
@BOTH_MODES
def test_own_loss_is_that_of_transformers(family: str, training: bool) -> None:
    adapter, batch = adapter_of(family), batch_for(family, (2, 3))
    model = adapter.model.train(training)
    model.model.decoder.training = training or hasattr(model.model.decoder, "pre_bbox_head")
    if hasattr(model.config, "group_detr") and not training:
        model.config.group_detr = 1  # transformers would match parts of the one group there is
    torch.manual_seed(7)
    with torch.no_grad():
        own = adapter.read(batch, with_loss=True).own_loss
        torch.manual_seed(7)
        expected = own_outputs(adapter, batch, labels=batch.targets.as_huggingface())
    assert own.parts.keys() == {name for name in expected.loss_dict if "cardinality" not in name}
    assert sum(own.parts.values()) == pytest.approx(own.total.item(), rel=1e-5)
    if training and DENOISING_COMPETES and hasattr(model.config, "num_denoising"):
        others = [name for name in own.parts if name.count("_") > 1]  # of all but the last layer
        torch.testing.assert_close([own.parts[name] for name in others], [expected.loss_dict[name] for name in others])
    else:
        torch.testing.assert_close(own.total, expected.loss)


@OWN_LOSS
@pytest.mark.parametrize("objects", [(3, 2), (3, 0), (0, 0)], ids=["objects", "one image empty", "all empty"])
def test_own_loss_uses_every_parameter_whatever_the_objects(family: str, objects: tuple[int, int]) -> None:
    """Distributed training waits for the gradient of every one."""
    adapter = adapter_of(family)
    adapter.model.train().zero_grad()
    total = adapter.read(batch_for(family, objects), with_loss=True).own_loss.total
    assert total.isfinite()
    total.backward()
    # A ViT's mask token is never read, and whole cells have no gradient with respect to where they are.
    unused = "sampling_offsets" if "discrete" in family else "mask_token"
    trained = {name: value for name, value in adapter.model.named_parameters() if value.requires_grad}
    assert [name for name, value in trained.items() if value.grad is None and unused not in name] == []


@EVERY_FAMILY
def test_an_image_without_objects_can_be_read(family: str) -> None:
    adapter = adapter_of(family)
    adapter.model.train()
    reading = adapter.read(batch_for(family, (0, 0)), with_loss=True)
    assert torch.isfinite(reading.view.logits).all()
    assert (reading.own_loss is not None) == (adapter.trains_with == "own")
