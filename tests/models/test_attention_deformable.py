from typing import Any

import pytest
import torch
from torch import Tensor

from builders_deformable import padded_batch, random_batch, tiny_deformable_detr, tiny_rt_detr
from qskd.data.batch import Batch
from qskd.models.adapter import DetrAdapter
from qskd.models.attention_deformable import splat
from qskd.models.families import adapter_class
from qskd.models.hooks import record_calls

MODELS = {
    "rt_detr, boxes as reference": ("rt_detr", tiny_rt_detr, {}),
    "deformable, points as reference": ("deformable_detr", tiny_deformable_detr, {}),
    "deformable, points then boxes": ("deformable_detr", tiny_deformable_detr, {"refine": True}),
    "deformable, proposals as reference": ("deformable_detr", tiny_deformable_detr, {"two_stage": True}),
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS.keys())
def adapter(request: pytest.FixtureRequest) -> DetrAdapter:
    family, build, options = request.param
    torch.manual_seed(0)
    return adapter_class(family)(build(**options))


@pytest.fixture
def batch(adapter: DetrAdapter) -> Batch:
    """Two images; padded to the right and below where the family can read padding."""
    images = random_batch(counts=(1, 2), size=(64, 96))
    return padded_batch(images, (96, 160)) if adapter.reads_padding else images


def weights_of(adapter: DetrAdapter, queries: int, zeros: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(adapter.num_layers, 2, queries, generator=generator)
    return weights * (torch.rand(weights.shape, generator=generator) > zeros)


def adjoint(call: dict[str, Any], outer: dict[str, Any], module: Any, weights: Tensor) -> Tensor:
    """d/dv of the weighted queries' head-mean output through the model's own sampling, [B, S]."""
    value = call["value"].new_zeros(*call["value"].shape[:3], 1).double().requires_grad_()
    seen = value if outer.get("attention_mask") is None else value * outer["attention_mask"][..., None, None]
    doubled = {name: item.double() for name, item in call.items() if name in ("sampling_locations",)}
    attention = call["attention_weights"].double()
    output = module.attn.forward(**(call | doubled | {"value": seen, "attention_weights": attention}))
    (output.mean(-1) * weights).sum().backward()
    return value.grad.sum((2, 3))


def oracle(adapter: DetrAdapter, batch: Batch, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The map by autograd through the model's own attention, and its sampling locations."""
    modules = [layer.encoder_attn for layer in adapter.model.model.decoder.layers]
    with torch.no_grad(), record_calls(modules) as outer, record_calls([m.attn for m in modules]) as inner:
        adapter.read(batch)
    maps = [adjoint(*both) for both in zip(inner, outer, modules, weights.double(), strict=True)]
    return torch.stack(maps), torch.stack([call["sampling_locations"] for call in inner])


@pytest.mark.parametrize("zeros", [0.0, 0.8], ids=["every query", "few queries"])
def test_mass_is_the_adjoint_of_the_models_own_attention(adapter: DetrAdapter, batch: Batch, zeros: float) -> None:
    with torch.no_grad():
        view = adapter.read(batch, capture_attention=True).view
    weights = weights_of(adapter, view.num_queries, zeros)
    expected, locations = oracle(adapter, batch, weights)
    assert ((locations < 0) | (locations > 1)).any(), "the oracle must see points outside the image"
    assert ((locations > 0) & (locations < 1)).float().mean() > 0.2
    mass = view.attention_mass(weights)
    assert mass.dtype == torch.float32
    torch.testing.assert_close(mass, expected.float(), atol=1e-5, rtol=1e-5)


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
    assert mass.sum() == mass[1, 0].sum()


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
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        adapter.read(batch, capture_attention=True)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in adapter.model.modules())


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
