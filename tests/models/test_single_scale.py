"""How DETR, Conditional DETR and DAB-DETR are read: costs, refusals and precision."""

from typing import Any

import pytest
import torch

from builders import random_batch, tiny_backbone, tiny_conditional_detr, tiny_dab_detr, tiny_detr
from qskd.data.batch import Batch
from qskd.errors import ConfigError
from qskd.models.families import adapter_class
from qskd.models.hooks import record_outputs
from qskd.models.view import DetrView

BUILDERS = pytest.mark.parametrize(
    "build", [tiny_detr, tiny_conditional_detr, tiny_dab_detr], ids=["detr", "conditional", "dab"]
)


def view_of(model: Any, batch: Batch) -> DetrView:
    with torch.no_grad():
        return adapter_class(model.config.model_type)(model).read(batch, capture_attention=True).view


@pytest.mark.parametrize(
    ("build", "kind", "class_weight"),
    [(tiny_detr, "softmax", 1), (tiny_conditional_detr, "focal", 2), (tiny_dab_detr, "focal", 2)],
    ids=["detr", "conditional", "dab"],
)
def test_match_costs_come_from_the_configuration(build: Any, kind: str, class_weight: int) -> None:
    model = build()
    costs = adapter_class(model.config.model_type)(model).match_costs
    assert (costs.kind, costs.class_weight, costs.box_weight, costs.giou_weight) == (kind, class_weight, 5, 2)
    other = build(class_cost=7, bbox_cost=8, giou_cost=9)
    costs = adapter_class(other.config.model_type)(other).match_costs
    assert (costs.class_weight, costs.box_weight, costs.giou_weight) == (7, 8, 9)


def test_skipped_decoder_layers_are_refused() -> None:
    model = tiny_conditional_detr(decoder_layerdrop=1.0).train()
    with pytest.raises(ConfigError, match="decoder_layerdrop"):
        adapter_class("conditional_detr")(model).read(random_batch())


def test_a_backbone_of_another_stride_is_refused() -> None:
    model = tiny_detr()
    model.config.dilation = True  # says stride 16, the ResNet still has 32
    with pytest.raises(ConfigError, match="stride 16"):
        adapter_class("detr")(model).read(random_batch())


@BUILDERS
def test_a_backbone_that_ends_a_stage_earlier_has_finer_cells(build: Any) -> None:
    backbone = tiny_backbone()
    backbone.out_features = ["stage3"]
    view = view_of(build(backbone_config=backbone), random_batch(((64, 96),), (2,)))
    assert view.strides == (16,)
    assert view.memory[0].shape[-2:] == (4, 6)


@pytest.mark.parametrize("build", [tiny_detr, tiny_conditional_detr])  # transformers' DAB-DETR cannot
def test_a_teacher_in_bfloat16_can_be_read(build: Any) -> None:
    model = build().bfloat16()
    view = view_of(model, random_batch())
    assert view.logits.dtype == torch.bfloat16
    assert torch.isfinite(view.attention_mass(torch.ones(view.logits.shape[:3]))).all()


@BUILDERS
def test_boxes_are_refined_in_float32_inside_autocast(build: Any) -> None:
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16), record_outputs([model.model.decoder]) as seen:
        boxes = view_of(model, random_batch()).boxes
    before_sigmoid = boxes.logit()
    assert ((before_sigmoid - before_sigmoid.bfloat16().float()).abs() > 1e-5).float().mean() > 0.9
    references = getattr(seen[model.model.decoder], "reference_points", None)
    if references is not None:
        refined = references[-1]
        assert (refined != refined.bfloat16().float()).float().mean() > 0.9


@BUILDERS
def test_earlier_layers_are_read_whatever_the_configuration_says_about_auxiliary_losses(build: Any) -> None:
    model = build(auxiliary_loss=False)
    states: list[torch.Tensor] = []

    def keep(_module: Any, inputs: tuple[torch.Tensor, ...], _output: Any) -> None:
        states.append(inputs[0])

    handles = [layer.register_forward_hook(keep) for layer in model.model.decoder.layers]
    view = view_of(model, random_batch())
    for handle in handles:
        handle.remove()
    head = getattr(model, "class_labels_classifier", None) or model.class_embed
    first = head(model.model.decoder.layernorm(states[1]))[..., :5]  # what enters layer 2 has left layer 1
    torch.testing.assert_close(view.logits[0], first, rtol=0.0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("build", [tiny_detr, tiny_conditional_detr])  # transformers' DAB-DETR has none
def test_gradient_checkpointing_changes_neither_the_view_nor_its_gradient(build: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        view = adapter_class(model.config.model_type)(model).read(random_batch()).view
        (view.logits.square().sum() + view.boxes.sum() + view.memory[0].square().sum()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-5)


def test_a_tiny_model_can_be_of_another_width() -> None:
    for build in (tiny_detr, tiny_conditional_detr, tiny_dab_detr):
        model = build(d_model=48, num_queries=7, decoder_layers=2, id2label={0: "cat", 1: "dog"})
        adapter = adapter_class(model.config.model_type)(model)
        assert adapter.memory_channels == (48,)
        assert adapter.read(random_batch()).view.logits.shape == (2, 2, 7, 2)
        assert adapter.id2label == {0: "cat", 1: "dog"}
