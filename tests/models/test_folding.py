"""A teacher made faster says what it said before."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from builders import MODELS, batch_for, tiny_detr
from qskd.models.families import adapter_class
from qskd.models.fingerprints import weights_fingerprint
from qskd.models.folding import fold_norms, inference_engine, merge_branches
from qskd.models.loading import as_teacher
from qskd.selection.groups import GroupQuerySelection


def _adapter(model: Any) -> Any:
    return adapter_class(model.config.model_type)(model)


def _teacher(name: str) -> Any:
    """A tiny teacher whose norms have statistics and scales of their own."""
    torch.manual_seed(0)
    model = MODELS[name]()
    random = torch.Generator().manual_seed(1)
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            for tensor, low in ((module.running_mean, -0.5), (module.running_var, 0.5), (module.weight, 0.5)):
                tensor.data = torch.rand(tensor.shape, generator=random) + low
            module.bias.data = torch.rand(module.bias.shape, generator=random) - 0.5
    return as_teacher(_adapter(model))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_an_engine_says_what_the_plain_teacher_says(name: str) -> None:
    # In double precision: in single, random two-stage models choose other queries for a difference of 1e-7.
    batch, plain, near = batch_for(name, (3, 2)), _teacher(name), 1e-4
    if name != "dab-detr":  # transformers computes its positions in single precision
        batch, near = replace(batch, pixels=batch.pixels.double()), 1e-5
        plain = _adapter(plain.model.double())
    one, other = (
        adapter.read(batch, capture_attention=True).view for adapter in (plain, inference_engine(plain, batch))
    )
    torch.testing.assert_close(other.logits, one.logits, rtol=near, atol=near)
    torch.testing.assert_close(other.boxes, one.boxes, rtol=near, atol=near)
    torch.testing.assert_close(other.memory, one.memory, rtol=near, atol=near)
    weights = torch.rand(one.logits.shape[:3], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other.attention_mass(weights), one.attention_mass(weights), rtol=near, atol=near)
    first, second = (GroupQuerySelection()(view, batch.targets, plain.match_costs) for view in (one, other))
    assert torch.equal(first.role, second.role)
    assert torch.equal(first.owner, second.owner)
    assert torch.equal(first.match, second.match)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_in_single_precision_an_engine_remembers_the_same(name: str) -> None:
    plain, batch = _teacher(name), batch_for(name, (3, 2))
    one, other = (adapter.read(batch).view.memory for adapter in (plain, inference_engine(plain, batch)))
    for level, engines in zip(one, other, strict=True):
        assert float((level - engines).abs().mean()) < 3e-5 * float(level.abs().mean())


@pytest.mark.parametrize("name", MODELS)
def test_no_batch_norm_after_a_convolution_is_left(name: str) -> None:
    engine = inference_engine(_teacher(name), batch_for(name))
    left = [where for where, module in engine.model.named_modules() if "BatchNorm2d" in type(module).__name__]
    assert left == []


def test_the_model_that_was_given_stays_as_it_was() -> None:
    plain = _teacher("rt_detr")
    before = weights_fingerprint(plain.model)
    engine = inference_engine(plain, batch_for("rt_detr"))
    assert weights_fingerprint(plain.model) == before
    assert all(parameter.is_contiguous() for parameter in plain.model.parameters())
    assert engine.model is not plain.model


def test_the_engine_learns_nothing() -> None:
    engine = inference_engine(_teacher("d_fine"), batch_for("d_fine"))
    assert not engine.model.training
    assert not any(parameter.requires_grad for parameter in engine.model.parameters())


def test_the_branches_of_a_hybrid_encoder_become_one_convolution() -> None:
    model = copy.deepcopy(_teacher("rt_detr").model)
    blocks = [module for module in model.modules() if type(module).__name__.endswith("RepVggBlock")]
    fold_norms(model)
    assert blocks
    assert merge_branches(model) == len(blocks)


def test_a_backbone_that_calls_its_layers_in_another_order_is_not_folded() -> None:
    class NormFirst(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.convolution, self.normalization = nn.Conv2d(16, 16, 1), norm

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.convolution(self.normalization(hidden))

    model = tiny_detr()
    layer = next(
        module for module in model.modules() if type(module).__name__ == "ResNetStage" and _width(module) == 16
    )
    layer.layers.append(NormFirst(nn.BatchNorm2d(16)))
    layer.layers[-1].normalization.running_mean += 3.0
    plain, batch = as_teacher(_adapter(model.eval())), batch_for("detr")
    engine = inference_engine(plain, batch)
    with torch.no_grad():
        torch.testing.assert_close(engine.read(batch).view.logits, plain.read(batch).view.logits, rtol=1e-5, atol=1e-5)


def test_a_norm_with_an_activation_inside_is_left_alone() -> None:
    class NormAndActivation(nn.BatchNorm2d):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden).relu()

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), NormAndActivation(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    ).eval()
    model[3].running_mean += 1.0
    pixels = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        expected = model(pixels)
        assert fold_norms(model) == 1
        torch.testing.assert_close(model(pixels), expected)


def test_a_convolution_that_several_norms_share_is_folded_for_each() -> None:
    class Level(nn.Module):
        def __init__(self, shared: nn.Module, mean: float) -> None:
            super().__init__()
            self.convolution, self.norm = shared, nn.BatchNorm2d(4)
            self.norm.running_mean += mean

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.norm(self.convolution(hidden))

    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(Level(shared, 1.0), Level(shared, 2.0)).eval()
    pixels = torch.rand(1, 4, 8, 8)
    with torch.no_grad():
        expected = model(pixels)
        assert fold_norms(model) == 2
        torch.testing.assert_close(model(pixels), expected)


def _width(stage: Any) -> int:
    return [module for module in stage.modules() if isinstance(module, nn.Conv2d)][-1].out_channels
