import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from builders import FAMILY_OF, MODELS, size_for
from builders_deformable import padded_batch, random_batch
from qskd.data.batch import Batch
from qskd.models.adapter import DetrAdapter
from qskd.models.attention_deformable import splat
from qskd.models.families import adapter_class
from qskd.models.hooks import record_calls

READ_AS = {
    "rt_detr": "boxes as reference",
    "deformable_detr": "points as reference",
    "deformable_detr-refine": "points, then boxes",
    "deformable_detr-two-stage": "proposals as reference",
    "rt_detr_v2": "scaled offsets",
    "rt_detr_v2-discrete": "whole cells",
    "d_fine": "another number of points on every level",
    "deimv2": "another number of points on every level",
    "lw_detr": "two levels",
    "rf_detr": "one level",
}


@pytest.fixture(scope="module", params=READ_AS, ids=[f"{name}, {how}" for name, how in READ_AS.items()])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def adapter(name: str) -> DetrAdapter:
    torch.manual_seed(0)
    return adapter_class(FAMILY_OF[name])(MODELS[name]())


@pytest.fixture
def batch(name: str, adapter: DetrAdapter) -> Batch:
    """Two images; padded to the right and below where the family can read padding."""
    images = random_batch(counts=(1, 2), size=size_for(name))
    return padded_batch(images, (96, 160)) if adapter.reads_padding else images


def weights_of(adapter: DetrAdapter, queries: int, zeros: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(adapter.num_layers, 2, queries, generator=generator)
    return weights * (torch.rand(weights.shape, generator=generator) > zeros)


def adjoint(module: Any, call: dict[str, Any], weights: Tensor) -> Tensor:
    """d/dv of the weighted queries' mean output through the model's own attention in float64, [B, S].

    With values handed on as they are, a channel of the output is what a head sees of one channel of ``v``.
    """
    real = copy.deepcopy(module).double()
    real.value_proj = real.output_proj = torch.nn.Identity()
    doubled = {key: item.double() for key, item in call.items() if torch.is_tensor(item) and item.is_floating_point()}
    value = doubled["encoder_hidden_states"].clone().requires_grad_()
    output, _ = real(**(call | doubled | {"encoder_hidden_states": value}))
    (output.mean(-1) * weights).sum().backward()
    return value.grad.sum(-1)


def oracle(adapter: DetrAdapter, batch: Batch, weights: Tensor) -> Tensor:
    """The map by autograd through the model's own attention."""
    layers = adapter.model.model.decoder.layers
    modules = [layer.cross_attn if hasattr(layer, "cross_attn") else layer.encoder_attn for layer in layers]
    with torch.no_grad(), record_calls(modules) as calls:
        adapter.read(batch)
    return torch.stack([adjoint(*both) for both in zip(modules, calls, weights.double(), strict=True)])


@pytest.mark.parametrize("zeros", [0.0, 0.8], ids=["every query", "few queries"])
def test_mass_is_the_adjoint_of_the_models_own_attention(
    name: str, adapter: DetrAdapter, batch: Batch, zeros: float
) -> None:
    with torch.no_grad():
        view = adapter.read(batch, capture_attention=True).view
    weights = weights_of(adapter, view.num_queries, zeros)
    expected = oracle(adapter, batch, weights)
    mass = view.attention_mass(weights)
    if "discrete" in name:
        torch.testing.assert_close(mass.sum(-1), weights.sum(-1), msg="whole cells are never outside")
    else:
        assert 0.2 * weights.sum() < expected.sum() < 0.999 * weights.sum(), "some points are outside the image"
    assert mass.dtype == torch.float32
    torch.testing.assert_close(mass, expected.float(), atol=1e-5, rtol=1e-5)


def test_of_the_groups_of_training_the_mass_is_that_of_the_first() -> None:
    """The tiny model has no dropout, and its first group knows nothing of the others."""
    adapter = adapter_class("lw_detr")(MODELS["lw_detr"]())
    for module in adapter.model.modules():
        if not isinstance(module, torch.nn.BatchNorm2d):
            module.training = True
    batch, weights = random_batch(counts=(1, 2)), weights_of(adapter, 10, zeros=0.5)
    training = adapter.read(batch, capture_attention=True).view
    adapter.model.eval()
    evaluation = adapter.read(batch, capture_attention=True).view
    torch.testing.assert_close(training.logits, evaluation.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(training.boxes, evaluation.boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(training.attention_mass(weights), evaluation.attention_mass(weights))


def test_padding_receives_no_mass(adapter: DetrAdapter, batch: Batch) -> None:
    with torch.no_grad():
        view = adapter.read(batch, capture_attention=True).view
    padding = torch.cat([level.flatten(1) for level in view.is_padding], dim=1)
    mass = view.attention_mass(torch.ones(view.logits.shape[:3]))
    assert mass.shape == (view.num_layers, view.num_images, view.num_tokens)
    assert padding.any() == adapter.reads_padding
    assert (mass[:, padding] == 0).all()


def test_zero_weights_give_zero_and_layers_do_not_mix(adapter: DetrAdapter, batch: Batch) -> None:
    with torch.no_grad():
        view = adapter.read(batch, capture_attention=True).view
    weights = torch.zeros(view.logits.shape[:3])
    assert (view.attention_mass(weights) == 0).all()
    weights[1, 0, 3] = 2.0
    mass = view.attention_mass(weights)
    assert mass[1, 0].sum() > 0
    mass[1, 0] = 0
    assert not mass.any()


def test_mass_is_the_same_bit_for_bit(adapter: DetrAdapter, batch: Batch) -> None:
    with torch.no_grad():
        views = [adapter.read(batch, capture_attention=True).view for _ in range(2)]
    weights = weights_of(adapter, views[0].num_queries, zeros=0.5)
    assert torch.equal(views[0].attention_mass(weights), views[1].attention_mass(weights))


def test_gradient_of_training_does_not_enter_the_mass(adapter: DetrAdapter, batch: Batch) -> None:
    view = adapter.read(batch, capture_attention=True).view
    assert view.logits.requires_grad
    assert not view.attention_mass(torch.ones(view.logits.shape[:3])).requires_grad


def test_reading_leaves_no_hook_behind(adapter: DetrAdapter, batch: Batch) -> None:
    def hooks() -> list[int]:
        return [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in adapter.model.modules()]

    before = hooks()  # a ViT's layers have some of their own
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        adapter.read(batch, capture_attention=True)
    assert hooks() == before


def test_mass_in_bfloat16_is_close_to_float32(adapter: DetrAdapter, batch: Batch) -> None:
    """The same captured queries, read inside autocast, go through float32 arithmetic."""
    with torch.no_grad():
        view = adapter.read(batch, capture_attention=True).view
        weights = weights_of(adapter, view.num_queries, zeros=0.0)
        plain = view.attention_mass(weights)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(view.attention_mass(weights), plain)


GRID = ((2, 3), (1, 2))  # six cells, then two


@pytest.mark.parametrize(
    ("level", "x", "y", "expected"),
    [
        pytest.param(0, 0.5, 0.25, {1: 1.0}, id="centre of a cell"),
        pytest.param(0, 1 / 3, 0.5, {0: 0.25, 1: 0.25, 3: 0.25, 4: 0.25}, id="where four cells meet"),
        pytest.param(0, 0.0, 0.25, {0: 0.5}, id="left edge: half is lost"),
        pytest.param(0, 1.0, 1.0, {5: 0.25}, id="bottom right corner: three quarters are lost"),
        pytest.param(0, -0.2, 0.25, {}, id="more than half a cell outside"),
        pytest.param(0, 0.5, 7.0, {}, id="far outside"),
        pytest.param(1, 0.375, 0.5, {6: 0.75, 7: 0.25}, id="second level"),
    ],
)
def test_splat_spreads_a_point_as_bilinear_sampling_reads_it(
    level: int, x: float, y: float, expected: dict[int, float]
) -> None:
    location = torch.full((1, 1, 1, 1, 2, 1, 2), 0.5)
    location[..., level, 0, :] = torch.tensor([x, y])
    share = torch.zeros(1, 1, 1, 1, 2, 1)
    share[..., level, 0] = 2.0
    mass = splat(location, share, GRID)[0, 0]
    wanted = torch.zeros(8)
    for token, part in expected.items():
        wanted[token] = 2.0 * part
    torch.testing.assert_close(mass, wanted, atol=1e-6, rtol=0)


def test_splat_keeps_layers_and_images_apart() -> None:
    location = torch.full((2, 3, 4, 2, 2, 1, 2), 0.25)
    share = torch.zeros(2, 3, 4, 2, 2, 1)
    share[1, 2] = 1.0
    mass = splat(location, share, GRID)
    assert mass.shape == (2, 3, 8)
    # 4 queries x 2 heads: all on the first level; three quarters on the second, whose only row ends there.
    assert mass[1, 2].sum() == pytest.approx(8 + 6)
    assert mass.sum() == mass[1, 2].sum()
