"""A compiled backbone answers as it did."""

import copy
import re

import pytest
import torch

from builders import MODELS, batch_for
from qskd.errors import ConfigError
from qskd.models.compiling import Compiling
from qskd.models.families import adapter_class
from qskd.models.initialising import backbone_of

CPU = torch.device("cpu")


def answers(adapter, name):
    batch = batch_for(name, (2, 1))
    view = adapter.read(batch).view
    view.logits.square().sum().backward()
    gradients = {key: one.grad.clone() for key, one in adapter.model.named_parameters() if one.grad is not None}
    adapter.model.zero_grad()
    return view, gradients


@pytest.mark.parametrize("name", ["conditional_detr", "rt_detr", "d_fine", "deimv2-dinov3", "lw_detr"])
def test_predictions_and_gradients_stay(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = MODELS[name]()
    adapter = adapter_class(model.config.model_type)(model)
    names = list(model.state_dict())
    view, gradients = answers(adapter, name)

    assert Compiling(backend="eager").backbone(adapter, CPU) is adapter

    compiled, others = answers(adapter, name)
    torch.testing.assert_close(compiled.logits, view.logits)
    torch.testing.assert_close(compiled.memory, view.memory)
    assert others.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-3, atol=1e-5)
    assert list(model.state_dict()) == names


def test_a_copy_is_not_compiled():
    model = MODELS["rt_detr"]()
    adapter = Compiling(backend="eager").backbone(adapter_class("rt_detr")(model), CPU)
    assert backbone_of(adapter.model)._compiled_call_impl is not None
    assert backbone_of(copy.deepcopy(adapter.model))._compiled_call_impl is None


def test_a_machine_without_a_compiler_is_told_at_once(monkeypatch):
    pytest.importorskip("torch._inductor.config")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nowhere/g++",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    torch._dynamo.reset()
    adapter = adapter_class("rt_detr")(MODELS["rt_detr"]())
    said = re.escape("inductor can compile nothing for cpu here (") + ".*compiler.*leave --torch_compile out"
    with pytest.raises(ConfigError, match=said):
        Compiling().backbone(adapter, CPU)
    assert backbone_of(adapter.model)._compiled_call_impl is None
