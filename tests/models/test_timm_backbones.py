"""Detectors whose backbone is one of timm's, as most published checkpoints of DETR's kind name one."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn
from transformers import AutoConfig, AutoModelForObjectDetection

from builders import MODELS, batch_for
from builders_realtime import tiny_d_fine
from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError, ConfigError
from qskd.models.adapter import PixelNorm
from qskd.models.backbone_weights import adapt_to_pixels, load_backbone_weights
from qskd.models.backbones import backbone_config, channels_of
from qskd.models.deriving import derive_student
from qskd.models.families import adapter_class
from qskd.models.folding import inference_engine
from qskd.models.initialising import backbone_of
from qskd.models.loading import as_teacher, load_model, new_model
from qskd.models.processors import IMAGENET, save_model
from qskd.models.shaping import StudentShape
from qskd.models.timm_backbones import drops_activations, timm_config
from qskd.selection.groups import GroupQuerySelection

NAMES = ["cat", "dog", "hen", "emu", "yak"]
PUBLISHED = ["detr", "conditional_detr", "deformable_detr", "dab-detr", "table-transformer"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def published(family, folder):
    """A checkpoint as the hub has it: the backbone by its name, its fields as they were years ago."""
    fields = {
        "model_type": family,
        "backbone": "test_resnet",
        "use_timm_backbone": True,
        "use_pretrained_backbone": True,
        "dilation": False,
        "num_queries": 12,
        "d_model": 32,
        "hidden_size": 32,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "id2label": dict(enumerate(NAMES)),
        "label2id": {name: number for number, name in enumerate(NAMES)},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    torch.manual_seed(0)
    model = AutoModelForObjectDetection.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(fields | {"architectures": model.config.architectures}))
    return folder


def classifier(name, folder, *, num_classes=7, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)):
    """A trained classifier as timm saves it, statistics and all."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=num_classes)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.rand(8, 3, 96, 96))
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": mean, "std": std}
    save_for_hf(model.eval(), folder, safe_serialization=True)
    return folder


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_published_checkpoint_teaches_and_a_smaller_one_learns_from_it(family, tmp_path):
    teacher = as_teacher(load_model(published(family, tmp_path / "teacher")))
    batch = batch_for("detr", (3, 2))
    engine = inference_engine(teacher, batch)
    assert not [name for name, module in engine.model.named_modules() if "BatchNorm2d" in type(module).__name__]
    with torch.no_grad():
        one, other = (adapter.read(batch, capture_attention=True).view for adapter in (teacher, engine))
        torch.testing.assert_close(other.logits, one.logits, rtol=1e-3, atol=1e-4)
        weights = torch.rand(one.logits.shape[:3])
        torch.testing.assert_close(other.attention_mass(weights), one.attention_mass(weights), rtol=1e-3, atol=1e-4)
        groups = GroupQuerySelection()(one, batch.targets, teacher.match_costs)
    assert groups.role.shape == (3, 2, 12)

    student, report = derive_student(teacher, StudentShape(decoder_layers=2), class_names=NAMES)
    view = student.read(batch).view
    (view.logits.sum() + view.boxes.sum()).backward()
    assert report.total > 0
    assert "RANDOM" not in report.as_table()
    save_model(student, tmp_path / "student", size=ImageSize(square=64))
    student.model.eval()
    torch.testing.assert_close(
        load_model(tmp_path / "student").read(batch).view.boxes, student.read(batch).view.boxes, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("family", ["detr", "deformable_detr", "rt_detr"])
def test_a_students_backbone_sees_what_timms_own_model_sees(family, tmp_path):
    source = classifier("test_resnet", tmp_path / "timm", mean=IMAGENET.mean, std=IMAGENET.std)
    model = MODELS[family]()
    teacher = adapter_class(model.config.model_type)(model, pixel_norm=IMAGENET)

    student, report = derive_student(teacher, StudentShape(backbone=str(source)), class_names=NAMES)

    own = timm.create_model("test_resnet", checkpoint_path=str(source / "model.safetensors"), num_classes=7).eval()
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        found = backbone_of(student.model.eval())(pixels)
        found = getattr(found, "feature_maps", found)
        expected = own.forward_intermediates(pixels, intermediates_only=True)
    assert len(found) == len(model.config.backbone_config.out_features)
    for maps, truth in zip(reversed(found), reversed(expected), strict=False):
        torch.testing.assert_close(maps, truth, rtol=1e-3, atol=1e-4)
    assert f"pretrained weights of {source}" in report.as_table()


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_other_pixels_are_seen_as_those_of_the_training(padding, bias):
    torch.manual_seed(0)
    trained, given = PixelNorm((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), PixelNorm((0.1, 0.0, 0.2), (1.0, 0.5, 0.7))
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=padding, bias=bias), nn.BatchNorm2d(4), nn.ReLU()).eval()
    layers[1].running_mean += 0.3
    layers[1].running_var += 0.7
    image = torch.rand(2, 3, 9, 9)

    def seen(norm):
        mean, std = (torch.tensor(values)[:, None, None] for values in (norm.mean, norm.std))
        return layers((image - mean) / std)

    with torch.no_grad():
        expected = seen(trained)
        assert adapt_to_pixels(layers, trained, given)
        found = seen(given)
    size = expected.shape[-1]
    inside = (..., slice(padding, size - padding), slice(padding, size - padding))
    torch.testing.assert_close(found[inside], expected[inside], rtol=1e-4, atol=1e-5)


def test_a_layer_that_cannot_take_the_shift_is_said():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.GroupNorm(2, 4))
    before = layers[0].weight.clone()
    assert not adapt_to_pixels(layers, IMAGENET, PixelNorm())
    assert torch.equal(layers[0].weight, before)


def test_weights_of_another_normalisation_are_adapted(tmp_path):
    source = classifier("test_resnet", tmp_path / "timm")
    teacher = adapter_class("rt_detr")(MODELS["rt_detr"]())  # feeds pixels as they are
    student, _ = derive_student(teacher, StudentShape(backbone=str(source)), class_names=NAMES)
    own = timm.create_model("test_resnet", checkpoint_path=str(source / "model.safetensors"), num_classes=7).eval()
    first, theirs = (
        next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        for model in (backbone_of(student.model), own)
    )
    torch.testing.assert_close(first.weight, theirs.weight / 0.25)


def test_activations_inside_norms_survive(tmp_path):
    source = classifier("test_efficientnet", tmp_path / "timm")
    rt_detr = adapter_class("rt_detr")(MODELS["rt_detr"]())

    student, _ = derive_student(rt_detr, StudentShape(backbone=str(source)), class_names=NAMES)

    assert "BatchNormAct2d" in {type(module).__name__ for module in student.model.modules()}
    save_model(student, tmp_path / "student", size=ImageSize(square=64))
    teacher = as_teacher(load_model(tmp_path / "student"))
    batch = batch_for("rt_detr", (3, 2))
    batch = replace(batch, pixels=batch.pixels.double())
    teacher = as_teacher(teacher.rebind(teacher.model.double()))
    engine = inference_engine(teacher, batch)
    assert not [module for module in engine.model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        one, other = (adapter.read(batch).view for adapter in (teacher, engine))
    torch.testing.assert_close(other.memory, one.memory, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.boxes, one.boxes, rtol=1e-5, atol=1e-5)

    detr = adapter_class("detr")(MODELS["detr"]())
    with pytest.raises(ConfigError, match="activations inside those of timm's 'test_efficientnet' would be lost"):
        derive_student(detr, StudentShape(backbone=str(source)), class_names=NAMES)


def test_convnext_has_no_norms_to_freeze(tmp_path):
    config = MODELS["detr"]().config
    config.backbone_config = backbone_config(str(classifier("test_convnext", tmp_path / "next")), "detr", 1)
    assert channels_of(config.backbone_config) == [64]
    assert not drops_activations(config)
    config.backbone_config = backbone_config(str(classifier("test_efficientnet", tmp_path / "net")), "detr", 1)
    assert drops_activations(config)


@pytest.mark.parametrize(
    "name", ["test_vit", "swin_tiny_patch4_window7_224", "mambaout_femto"], ids=["strides", "one size", "channels last"]
)
def test_maps_that_a_detector_cannot_take_are_refused(name):
    with pytest.raises(ConfigError, match=f"timm's '{name}'"):
        timm_config(name, 2)


def test_the_backbone_of_a_detector_with_one_of_timms_can_be_had(tmp_path):
    source = published("detr", tmp_path / "detr")
    student, _ = derive_student(
        adapter_class("rt_detr")(MODELS["rt_detr"](), pixel_norm=IMAGENET),
        StudentShape(backbone=str(source)),
        class_names=NAMES,
    )
    own, theirs = (backbone_of(model).state_dict() for model in (student.model, load_model(source).model))
    for name, weight in theirs.items():
        assert torch.equal(own[f"_backbone.{name}"], weight), name


def test_a_teacher_that_transformers_robbed_of_activations_has_students_like_it(tmp_path):
    config = MODELS["rt_detr"]().config
    config.backbone_config = timm_config("test_efficientnet", len(config.encoder_in_channels))
    config.encoder_in_channels = channels_of(config.backbone_config)
    config.freeze_backbone_batch_norms = True
    config.id2label = dict(enumerate(NAMES))
    torch.manual_seed(0)
    AutoModelForObjectDetection.from_config(config).save_pretrained(tmp_path)
    teacher = as_teacher(load_model(tmp_path))
    student, _ = derive_student(teacher, StudentShape(decoder_layers=2), class_names=NAMES)
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = [backbone_of(adapter.model.eval())(pixels).feature_maps for adapter in (teacher, student)]
    for one, other in zip(*maps, strict=True):
        torch.testing.assert_close(one, other)


def test_an_unknown_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "no_such_net", "num_classes": 3, "pretrained_cfg": {}})
    )
    with pytest.raises(ConfigError, match="no_such_net"):
        backbone_config(str(tmp_path), "rt_detr", 2)


def test_without_timm_the_command_is_named(tmp_path, monkeypatch):
    source = classifier("test_resnet", tmp_path)
    monkeypatch.setattr("transformers.utils.import_utils.is_timm_available", lambda: False)
    monkeypatch.setattr("qskd.models.timm_backbones.is_timm_available", lambda: False)
    with pytest.raises(ConfigError, match="pip install timm"):
        backbone_config(str(source), "rt_detr", 2)
    with pytest.raises(ConfigError, match="pip install timm"):
        timm_config("test_resnet", 2)


def edited_weights(change, folder):
    source = classifier("test_resnet", folder)
    state = load_file(source / "model.safetensors")
    change(state)
    save_file(state, source / "model.safetensors")
    return source


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("layer3.0.conv1.weight"), "layer3.0.conv1.weight of a test_resnet is absent"),
        (
            lambda state: state.update({"bn1.bias": torch.full_like(state["bn1.bias"], torch.nan)}),
            "bn1.bias is not finite",
        ),
        (lambda state: state.update({"bn1.bias": torch.zeros(3)}), r"bn1.bias of a test_resnet has the shape \(3,\)"),
    ],
)
def test_weights_that_are_not_whole_are_refused(change, told, tmp_path):
    source = edited_weights(change, tmp_path / "timm")
    with pytest.raises(CheckpointError, match=told):
        derive_student(adapter_class("detr")(MODELS["detr"]()), StudentShape(backbone=str(source)), class_names=NAMES)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"mean": [0.5]}, "mean"), ({"std": [0.5, 0.5, 0.0]}, "std"), ({"mean": "grey"}, "mean")],
)
def test_a_normalisation_that_cannot_be_is_refused(settings, told, tmp_path):
    source = classifier("test_resnet", tmp_path)
    content = json.loads((source / "config.json").read_text())
    content["pretrained_cfg"] |= settings
    (source / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=told):
        derive_student(adapter_class("detr")(MODELS["detr"]()), StudentShape(backbone=str(source)), class_names=NAMES)


def test_a_torn_file_is_refused(tmp_path):
    source = classifier("test_resnet", tmp_path)
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="No backbone weights in"):
        derive_student(adapter_class("detr")(MODELS["detr"]()), StudentShape(backbone=str(source)), class_names=NAMES)


@pytest.mark.parametrize("name", ["repvgg_a0", "eca_nfnet_l0"], ids=["branches", "standardised weights"])
def test_first_layers_that_cannot_take_a_normalisation_are_left(name):
    backbone = timm.create_model(name, features_only=True)
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    assert not adapt_to_pixels(backbone, IMAGENET, PixelNorm())
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())


def test_padding_in_the_manner_of_tensorflow_is_understood():
    torch.manual_seed(0)
    backbone = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(0,)).eval()
    image = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    with torch.no_grad():
        expected = backbone.bn1(backbone.conv_stem((image - mean) / std))
        assert adapt_to_pixels(backbone, IMAGENET, PixelNorm())
        found = backbone.bn1(backbone.conv_stem(image))
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-4)


def test_pickled_weights_and_other_architectures_are_not_read(tmp_path):
    source = classifier("test_resnet", tmp_path / "timm")
    model = new_model(tiny_d_fine().config, NAMES).model
    with pytest.raises(CheckpointError, match="one of timm's, the detector's backbone is a hgnet_v2 of transformers"):
        load_backbone_weights(model, str(source), PixelNorm())
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    teacher = adapter_class("detr")(MODELS["detr"]())
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        derive_student(teacher, StudentShape(backbone=str(source)), class_names=NAMES)
