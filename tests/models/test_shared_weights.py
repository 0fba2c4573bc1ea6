import pytest
import torch
from safetensors.torch import save_model as save_file_of_module

from builders import MODELS
from qskd.data.transforms import ImageSize
from qskd.models.families import adapter_class
from qskd.models.fingerprints import weights_fingerprint
from qskd.models.loading import load_model
from qskd.models.processors import save_model


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("by", ["transformers", "qskd"])
@pytest.mark.parametrize("family", ["deimv2-lite", "d_fine", "rt_detr_v2", "deformable_detr"])
def test_shared_heads_come_back_whoever_saved_them(family, by, tmp_path):
    model = MODELS[family]()
    adapter = adapter_class(model.config.model_type)(model)
    if by == "qskd":
        save_model(adapter, tmp_path, size=ImageSize(square=64))
    else:
        model.save_pretrained(tmp_path)

    loaded = load_model(tmp_path)

    assert weights_fingerprint(loaded.model) == weights_fingerprint(adapter.model)


@pytest.mark.parametrize("family", ["rf_detr", "lw_detr", "deimv2-lite"])
def test_a_loaded_model_is_one_that_safetensors_saves(family, tmp_path):
    model = MODELS[family]()
    save_model(adapter_class(model.config.model_type)(model), tmp_path, size=ImageSize(square=64))

    loaded = load_model(tmp_path).model

    save_file_of_module(torch.nn.ModuleDict({"student": loaded}), str(tmp_path / "whole.safetensors"))
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in loaded.parameters())


def test_what_qskd_saves_transformers_loads_alone(tmp_path):
    model = MODELS["deimv2-lite"]()
    save_model(adapter_class("deimv2")(model), tmp_path, size=ImageSize(square=64))

    loaded = type(model).from_pretrained(tmp_path)

    head, other = model.model.decoder.bbox_embed, loaded.model.decoder.bbox_embed
    assert torch.equal(other[2].layers[0].weight, head[2].layers[0].weight)
