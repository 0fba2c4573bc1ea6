import copy
import re

import pytest
import torch
from torch import nn

from builders import MODELS, random_batch, tiny_detr
from qskd.models.fingerprints import weights_fingerprint
from qskd.models.initialising import (
    CLASS_HEAD,
    SOFTMAX_FAMILIES,
    TrainableBatchNorm2d,
    backbone_of,
    freeze_backbone_norms,
    thaw_backbone,
    train_backbone,
)
from qskd.models.loading import new_model

NAMES = ["cat", "dog", "hen"]


def fresh_adapter(family):
    torch.manual_seed(0)
    return new_model(MODELS[family]().config, NAMES)


def fresh(family):
    return fresh_adapter(family).model


@pytest.mark.parametrize("family", MODELS)
def test_a_new_model_answers_differently_to_different_images(family):
    adapter = fresh_adapter(family)
    adapter.model.train()

    with torch.no_grad():
        memory = adapter.read(random_batch(((64, 64), (64, 64)))).view.memory

    assert min(float(level.std(0).mean()) for level in memory) > 1e-3  # Hugging Face's RT-DETR: 1e-7


@pytest.mark.parametrize("family", [family for family in MODELS if family not in SOFTMAX_FAMILIES])
def test_a_new_sigmoid_model_expects_every_class_with_one_percent(family):
    model = fresh(family).eval()
    biases = [
        module.bias
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and CLASS_HEAD.search(name)
    ]

    assert biases
    for bias in biases:
        torch.testing.assert_close(bias.sigmoid(), torch.full((3,), 0.01))


@pytest.mark.parametrize("family", [family for family in MODELS if family not in SOFTMAX_FAMILIES])
def test_box_heads_start_from_the_reference_points(family):
    model = fresh(family)
    heads = [
        module
        for name, module in model.named_modules()
        if re.search(r"(bbox_predictor|bbox_embed|bbox_embed\.0|bbox_head|reg_conf)$", name)
        and hasattr(module, "layers")
    ]

    assert heads
    for head in heads:
        assert_constant(head)


def assert_constant(head):
    offsets = head(torch.randn(7, head.layers[0].in_features))

    assert offsets.std(0).max() == 0
    assert not offsets[0, :2].any()


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"with_box_refine": False}, 0.1192),  # the sigmoid of -2
        ({"with_box_refine": True}, 0.1192),
        ({"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 6, "num_queries": 6}, 0.05),
    ],
    ids=["plain", "refining", "two stages"],
)
def test_boxes_of_a_new_deformable_detr_are_as_large_in_every_layer(options, size):
    """Where layers change the boxes of the one before, a start that is small anew in each of them leads to nothing."""
    config = MODELS["deformable_detr"]().config
    config.update({"decoder_layers": 6, **options})
    torch.manual_seed(0)
    adapter = new_model(config, NAMES)
    adapter.model.eval()

    with torch.no_grad():
        boxes = adapter.read(random_batch(((64, 64), (64, 64)))).view.boxes  # [6, B, Q, 4]

    sizes = boxes[..., 2:].mean((1, 2, 3))
    torch.testing.assert_close(sizes, sizes[:1].expand(6))
    assert sizes[0] >= size - 1e-4


def test_the_gates_of_d_fine_are_half_open_and_queries_of_lw_detr_start_from_proposals():
    decoder = fresh("d_fine").model.decoder

    assert all((layer.gateway.gate.weight == 0).all() for layer in decoder.layers)
    assert (fresh("lw_detr").model.reference_point_embed.weight == 0).all()


@pytest.mark.parametrize("family", MODELS)
def test_a_random_backbone_learns_whole(family):
    adapter = fresh_adapter(family)
    model = adapter.model.train()

    memory = adapter.read(random_batch(((64, 64), (64, 64)))).view.memory
    sum(level.square().sum() for level in memory).backward()

    without = [name for name, parameter in backbone_of(model).named_parameters() if parameter.grad is None]
    assert [name for name in without if "mask_token" not in name] == []  # a ViT's, read in its pretraining alone
    assert not [m for m in backbone_of(model).modules() if "Frozen" in type(m).__name__]


def test_thawing_keeps_names_and_answers():
    model = MODELS["detr"]()
    for module in backbone_of(model).modules():
        if "Frozen" in type(module).__name__:
            module.running_var.uniform_(0.5, 2)
            module.bias.normal_()
    pixels = torch.rand(1, 3, 64, 64)
    before, names = model(pixels).pred_boxes, list(model.state_dict())

    thaw_backbone(model)

    assert sorted(model.state_dict()) == sorted(names)
    torch.testing.assert_close(model(pixels).pred_boxes, before)


def test_a_trainable_batch_norm_loads_states_without_metadata():
    norm = TrainableBatchNorm2d(4)
    state = {key: torch.rand(4) for key in ("weight", "bias", "running_mean", "running_var")}

    norm.load_state_dict(state)

    assert torch.equal(norm.running_var, state["running_var"])


def test_all_of_a_pretrained_backbone_learns():
    model = MODELS["detr"]()
    backbone_of(model).requires_grad_(False)

    train_backbone(model)

    assert all(parameter.requires_grad for parameter in backbone_of(model).parameters())


def test_the_same_seed_draws_the_same_weights():
    first, second = fresh("deformable_detr"), fresh("deformable_detr")

    assert weights_fingerprint(first) == weights_fingerprint(second)


@pytest.mark.parametrize("kind", [None, nn.BatchNorm2d])
def test_frozen_norms_stay_as_they_are_while_the_rest_learns(kind):
    model = new_model(tiny_detr().config, ["a", "b"]).model
    if kind is not None:  # with a counter of batches, as in models that thaw their norms themselves
        stem = backbone_of(model).embedder.embedder
        stem.normalization = kind(stem.normalization.num_features)
    norms = [module for module in backbone_of(model).modules() if isinstance(module, nn.BatchNorm2d)]
    names = set(model.state_dict())
    assert freeze_backbone_norms(model) == len(norms) > 0
    assert set(model.state_dict()) == names
    model = copy.deepcopy(model).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.rand(2, 3, 64, 64)).logits.sum().backward()
    torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1).step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("convolution" in name for name in changed)
    assert not any("normalization" in name for name in changed)
    assert freeze_backbone_norms(tiny_detr()) == 0  # Hugging Face has frozen those already
