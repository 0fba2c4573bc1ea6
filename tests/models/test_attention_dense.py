"""Attention mass of DETR, Conditional DETR and DAB-DETR against the maps the real layers use."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from builders import random_batch, tiny_conditional_detr, tiny_dab_detr, tiny_detr
from qskd.data.batch import Batch
from qskd.models import attention_dense
from qskd.models.attention_dense import CrossAttention, DenseAttentionMass
from qskd.models.families import adapter_class
from qskd.models.view import DetrView

BUILDERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "detr": (tiny_detr, {}),
    "conditional": (tiny_conditional_detr, {}),
    "dab": (tiny_dab_detr, {}),
    "dab-keeps-query-positions": (tiny_dab_detr, {"keep_query_pos": True}),
    "dab-patterns": (tiny_dab_detr, {"num_patterns": 2}),
    "detr-one-layer": (tiny_detr, {"decoder_layers": 1}),
    "detr-normalised-between-layers": (tiny_detr, {"auxiliary_loss": True}),
    "conditional-other-heads": (tiny_conditional_detr, {"decoder_attention_heads": 2}),
    "detr-learned-positions": (tiny_detr, {"position_embedding_type": "learned"}),
}
PADDED = ((64, 128), (128, 96))


def view_of(model: Any, batch: Batch) -> DetrView:
    with torch.no_grad():
        return adapter_class(model.config.model_type)(model).read(batch, capture_attention=True).view


def some_weights(view: DetrView, seed: int = 0) -> Tensor:
    """[L, B, Q] with about half the queries selected."""
    generator = torch.Generator().manual_seed(seed)
    shape = view.logits.shape[:3]
    return torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) > 0.5)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("sizes", [((64, 96), (64, 96)), PADDED], ids=["unpadded", "padded"])
def test_mass_is_the_weighted_sum_of_the_maps_transformers_returns(name: str, sizes: Any) -> None:
    build, overrides = BUILDERS[name]
    batch = random_batch(sizes, (1, 1))
    view = view_of(build(**overrides), batch)
    weights = some_weights(view)
    eager = build(attn_implementation="eager", **overrides)
    with torch.no_grad():
        own = eager(
            pixel_values=adapter_class(eager.config.model_type)(eager).normalise(batch),
            pixel_mask=(~batch.is_padding()).long(),
            output_attentions=True,
        )
    maps = torch.stack(own.cross_attentions).double().mean(2)  # [L, B, Q, S]
    assert maps.std() > 1e-2  # the tiny model looks somewhere
    expected = torch.einsum("lbq,lbqs->lbs", weights.double(), maps)
    torch.testing.assert_close(view.attention_mass(weights).double(), expected, rtol=0.0, atol=1e-5)


def test_mass_is_the_derivative_of_the_attended_values() -> None:
    model, batch = tiny_detr(), random_batch(PADDED, (1, 1))
    view = view_of(model, batch)
    weights = some_weights(view, seed=1)
    for layer, module in enumerate(model.model.decoder.layers):
        attention, heads = module.encoder_attn, 4
        values = torch.zeros(2, 16, 32, requires_grad=True)
        attended: list[Tensor] = []
        hooks = [
            attention.v_proj.register_forward_hook(lambda *_, values=values: values),
            attention.o_proj.register_forward_pre_hook(lambda _, args, seen=attended: seen.append(args[0])),
        ]
        adapter_class("detr")(model).read(batch)
        for hook in hooks:
            hook.remove()
        first_channels = attended[0].unflatten(-1, (heads, -1))[..., 0]  # [B, Q, H]
        total = (weights[layer][..., None] * first_channels).sum() / heads
        (gradient,) = torch.autograd.grad(total, values)
        expected = gradient.unflatten(-1, (heads, -1))[..., 0].sum(-1)  # [B, S]
        torch.testing.assert_close(view.attention_mass(weights)[layer], expected, rtol=0.0, atol=1e-5)


def random_attention(images: int = 2, queries: int = 150, tokens: int = 6) -> DenseAttentionMass:
    generator = torch.Generator().manual_seed(3)
    layer = CrossAttention(
        queries=(torch.randn(images, queries, 8, generator=generator),),
        keys=(torch.randn(images, tokens, 8, generator=generator),),
        num_heads=2,
        scaling=0.5,
    )
    is_padding = torch.zeros(images, tokens, dtype=torch.bool)
    is_padding[1, 4:] = True
    return DenseAttentionMass((layer, layer), is_padding)


def test_many_queries_are_added_up_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = random_attention()
    weights = torch.rand(2, 2, 150, generator=torch.Generator().manual_seed(4))
    chunked = attention(weights, None)  # 150 queries in chunks of 64
    monkeypatch.setattr(attention_dense, "_QUERIES_AT_ONCE", 1000)
    torch.testing.assert_close(chunked, attention(weights, None), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(chunked.sum(-1), weights.sum(-1), rtol=1e-5, atol=1e-5)


def test_only_selected_queries_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = random_attention()
    rows: list[tuple[int, ...]] = []
    original = attention_dense._by_head

    def spy(parts: Any, num_heads: int) -> Tensor:
        rows.append(tuple(parts[0].shape[:2]))
        return original(parts, num_heads)

    monkeypatch.setattr(attention_dense, "_by_head", spy)
    weights = torch.zeros(2, 2, 150)
    weights[0, 0, [3, 77]] = 1.0
    weights[0, 1, 9] = 1.0
    attention(weights, None)
    assert rows == [(2, 6), (2, 2), (2, 6)]  # keys and two queries an image; then keys of a layer with none


def test_negative_weights_select_nothing() -> None:
    attention = random_attention()
    weights = torch.zeros(2, 2, 150)
    weights[:, :, 5] = 1.0
    expected = attention(weights, None)
    weights[:, 1, 6] = -1.0
    weights[:, 0, 7] = 1e-30
    torch.testing.assert_close(attention(weights, None), expected)


def test_weights_of_another_view_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(2, 2, 150\)"):
        random_attention()(torch.ones(3, 2, 150))


def test_a_gradient_passes_through_the_weights() -> None:
    weights = torch.rand(2, 2, 150, requires_grad=True)
    random_attention()(weights).sum().backward()
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad, torch.ones_like(weights))  # each query spreads its whole weight
