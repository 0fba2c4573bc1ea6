import pytest
import torch
from transformers import AutoBackbone, ConditionalDetrConfig, ResNetConfig

from builders import FAMILY_OF, MODELS, batch_for
from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError, ConfigError
from qskd.models.backbones import backbone_config, channels_of, same_architecture, scaled
from qskd.models.deriving import derive_student
from qskd.models.families import adapter_class
from qskd.models.fingerprints import weights_fingerprint
from qskd.models.initialising import backbone_of
from qskd.models.lineage import layer_choice
from qskd.models.loading import load_model, new_model
from qskd.models.processors import save_model
from qskd.models.shaping import StudentShape, student_config

NAMES = ["cat", "dog", "hen", "emu", "yak"]
NARROW = {"rt_detr", "rt_detr_v2", "d_fine", "deimv2", "lw_detr", "rf_detr"}  # the tiny ones have D = 16
FIXED_BACKBONE = {"deimv2-dinov3", "lw_detr", "rf_detr"}  # ViTs, whose width cannot be scaled


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def teacher_of(family, **overrides):
    model = MODELS[family](**overrides)
    model.config.id2label = dict(enumerate(NAMES))
    return adapter_class(model.config.model_type)(model)


@pytest.mark.parametrize("family", MODELS)
def test_a_student_of_the_same_shape_is_its_teacher(family):
    teacher = teacher_of(family)

    student, report = derive_student(teacher, StudentShape(), class_names=NAMES)

    assert weights_fingerprint(student.model) == weights_fingerprint(teacher.model)
    assert report.inherited == report.total
    assert student.model.training
    assert not teacher.model.training


@pytest.mark.parametrize("family", MODELS)
def test_a_student_of_another_shape_can_be_trained_and_loaded(family, tmp_path):
    width = None if family in FIXED_BACKBONE else 0.5
    hidden = 32 if FAMILY_OF[family] in NARROW else 64
    expansion = 0.5 if hasattr(teacher_of(family).model.config, "hidden_expansion") else None
    shape = StudentShape(
        backbone_width=width,
        decoder_layers=2,
        num_queries=7,
        hidden_size=hidden,
        ffn_size=24,
        hidden_expansion=expansion,
    )
    names = ["yak", "fox"]

    student, report = derive_student(teacher_of(family), shape, class_names=names)

    batch = batch_for(family, (2, 1), num_classes=2)
    view = student.read(batch).view
    (view.logits.sum() + view.boxes.sum()).backward()
    assert (view.num_layers, view.num_queries, view.num_classes) == (2, 7, 2)
    assert 0 < report.total == sum(group.total for group in report.groups)
    assert any(parameter.grad is not None for parameter in backbone_of(student.model).parameters())
    assert "RANDOM" not in report.as_table(), "a narrower backbone takes channels of the teacher's"
    student.model.eval()
    torch.manual_seed(0)
    for parameter in student.model.parameters():  # box heads start at 0, where all queries are alike
        parameter.data += 0.05 * torch.randn_like(parameter)
    save_model(student, tmp_path, size=ImageSize(square=64))
    torch.testing.assert_close(load_model(tmp_path).read(batch).view.boxes, student.read(batch).view.boxes)


@pytest.mark.parametrize(
    ("target", "source", "expected"),
    [
        (6, 6, (0, 1, 2, 3, 4, 5)),
        (3, 6, (1, 3, 5)),
        (4, 6, (1, 2, 3, 5)),
        (1, 6, (5,)),
        (2, 3, (1, 2)),
        (3, 2, (0, 0, 1)),
        (2, 1, (0, 0)),
    ],
)
def test_layers_are_evenly_spaced_and_the_last_comes_from_the_last(target, source, expected):
    assert layer_choice(target, source) == expected


def test_a_student_with_one_decoder_layer_gets_the_teachers_last_with_its_heads():
    teacher = teacher_of("rt_detr")

    student, _ = derive_student(teacher, StudentShape(decoder_layers=1), class_names=NAMES)

    mine, theirs = student.model.model.decoder, teacher.model.model.decoder
    assert torch.equal(mine.layers[0].mlp.fc1.weight, theirs.layers[2].mlp.fc1.weight)
    assert torch.equal(mine.class_embed[0].weight, theirs.class_embed[2].weight)
    assert torch.equal(mine.bbox_embed[0].layers[1].weight, theirs.bbox_embed[2].layers[1].weight)


def test_the_proposal_heads_of_a_two_stage_model_stay_the_last():
    teacher = teacher_of("deformable_detr-two-stage", tie_word_embeddings=False)
    heads = teacher.model.class_embed
    assert not torch.equal(heads[3].weight, heads[2].weight)

    student, _ = derive_student(teacher, StudentShape(decoder_layers=2), class_names=NAMES)

    assert len(student.model.class_embed) == 3
    assert torch.equal(student.model.class_embed[2].weight, heads[3].weight)
    assert torch.equal(student.model.class_embed[1].weight, heads[2].weight)


@pytest.mark.parametrize("family", ["conditional_detr", "dab-detr"])
def test_what_only_a_first_decoder_layer_has_comes_from_the_teachers_first(family):
    teacher = teacher_of(family)

    student, report = derive_student(teacher, StudentShape(decoder_layers=2), class_names=NAMES)

    assert layer_choice(2, 3)[0] != 0
    assert report.inherited == report.total
    first = dict(teacher.model.model.decoder.layers[0].named_parameters())
    later = dict(teacher.model.model.decoder.layers[1].named_parameters())
    only_first = first.keys() - later.keys()
    assert only_first
    for name, parameter in student.model.model.decoder.layers[0].named_parameters():
        assert torch.equal(parameter, (first if name in only_first else later)[name])


def test_fewer_queries_are_the_teachers_first():
    teacher = teacher_of("detr")

    student, _ = derive_student(teacher, StudentShape(num_queries=4), class_names=NAMES)

    queries = teacher.model.model.query_position_embeddings.weight
    assert torch.equal(student.model.model.query_position_embeddings.weight, queries[:4])


def test_head_rows_go_by_class_name_and_no_object_stays():
    teacher = teacher_of("detr")

    student, report = derive_student(teacher, StudentShape(), class_names=["Yak", "fox", "cat"])

    old, new = teacher.model.class_labels_classifier.weight, student.model.class_labels_classifier.weight
    assert torch.equal(new[[0, 2, 3]], old[[4, 0, 5]])
    assert not (new[1] == old).all(-1).any()
    assert "Classes the teacher has not: fox." in report.as_table()
    heads = next(group for group in report.groups if group.name == "class heads")
    assert (heads.inherited, heads.total) == (3 * 33, 4 * 33)  # rows of 32 weights and a bias


def test_a_backbone_that_took_nothing_over_is_told(monkeypatch):
    monkeypatch.setattr("qskd.models.deriving.same_blocks", lambda mine, theirs: False)
    report = derive_student(teacher_of("detr"), StudentShape(backbone_width=0.5), class_names=NAMES)[1]
    assert report.groups[0].name == "backbone"
    assert report.groups[0].inherited == 0
    assert "RANDOM" in report.as_table()


def test_a_wider_layer_inherits_neither_weight_nor_bias():
    teacher = teacher_of("detr")

    student, _ = derive_student(teacher, StudentShape(ffn_size=4096), class_names=NAMES)

    mine, theirs = student.model.model.encoder.layers[0].mlp, teacher.model.model.encoder.layers[0].mlp
    assert mine.fc1.out_features > theirs.fc1.out_features, "more channels than the teacher has"
    assert not torch.equal(mine.fc2.bias, theirs.fc2.bias)


def test_without_inheriting_nothing_is_taken_over():
    teacher = teacher_of("rt_detr")

    student, report = derive_student(teacher, StudentShape(), class_names=NAMES, inherit=False)

    assert report.inherited == 0
    theirs = teacher.model.model.decoder.layers[0].mlp.fc1.weight
    assert not torch.equal(student.model.model.decoder.layers[0].mlp.fc1.weight, theirs)
    assert not student.model.config.freeze_backbone_batch_norms


def test_students_of_one_seed_are_equal_and_the_global_seed_is_left_alone():
    teacher, shape = teacher_of("rt_detr"), StudentShape(backbone_width=0.5)
    state = torch.get_rng_state()

    prints = [
        weights_fingerprint(derive_student(teacher, shape, class_names=NAMES, seed=seed)[0].model) for seed in (1, 1, 2)
    ]

    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_teacher_and_its_configuration_stay_as_they_were():
    teacher = teacher_of("rt_detr")
    before, config = weights_fingerprint(teacher.model), teacher.model.config.to_dict()

    derive_student(teacher, StudentShape(hidden_size=8, backbone="resnet18"), class_names=["ox"])

    assert weights_fingerprint(teacher.model) == before
    assert teacher.model.config.to_dict() == config


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        ("detr", 30, r"hidden_size 30 .* 4 and 4 attention heads.* multiple of 4, for example 28 or 32"),
        ("deformable_detr", 48, r"multiple of 32, for example 32 or 64"),
        ("rt_detr", 2, r"multiple of 4, for example 4"),
    ],
)
def test_a_width_that_does_not_fit_names_those_that_do(family, size, message):
    with pytest.raises(ConfigError, match=message):
        derive_student(teacher_of(family), StudentShape(hidden_size=size), class_names=NAMES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder_layers": 0}, "decoder_layers of a student is 0"),
        ({"backbone_width": -1.0}, "backbone_width"),
        ({"backbone": "some/folder", "backbone_weights": "other"}, "brings its own weights"),
    ],
)
def test_a_shape_that_contradicts_itself_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        StudentShape(**settings)


@pytest.mark.parametrize(
    ("family", "shape", "message"),
    [
        ("detr", StudentShape(hidden_expansion=0.5), "a detr has none"),
        ("rt_detr", StudentShape(hidden_expansion=0.001), "leaves too few"),
        ("detr", StudentShape(backbone="resnet19"), r"No backbone 'resnet19'.*resnet18"),
        ("lw_detr", StudentShape(encoder_layers=2), "nothing of the kind"),
        ("rt_detr_v2", StudentShape(decoder_layers=1), "at least 2 decoder layers"),
        ("d_fine", StudentShape(decoder_layers=1), "at least 2 decoder layers"),
        ("deformable_detr", StudentShape(decoder_layers=1), "at least 2 decoder layers"),
        ("deimv2-lite", StudentShape(backbone="hgnetv2_b0"), "of this lite deimv2 ends at stride 16"),
        ("lw_detr", StudentShape(backbone="resnet18"), r"backbone of a lw_detr is a lw_detr_vit, but 'resnet18'"),
        ("rf_detr", StudentShape(backbone_width=0.5), "scales ResNets and HGNetV2s, not a rf_detr_dinov2"),
    ],
)
def test_a_shape_the_family_cannot_have_is_refused(family, shape, message):
    with pytest.raises(ConfigError, match=message):
        derive_student(teacher_of(family), shape, class_names=NAMES)


def test_the_papers_pair_of_conditional_detrs_builds_from_configuration():
    resnet50 = ResNetConfig(out_features=["stage4"])
    config = ConditionalDetrConfig(backbone_config=resnet50)
    with torch.device("meta"):
        teacher = adapter_class("conditional_detr")(torch.nn.Module())
        teacher.model.config = config

    student = student_config(teacher, StudentShape(backbone="resnet18"), NAMES)

    assert channels_of(student.backbone_config) == [512]
    assert student.backbone_config.layer_type == "basic"
    assert student.d_model == 256


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # as published for PP-HGNetV2, without its last convolution and classifier
        ("hgnetv2_b0", 1.85),
        ("hgnetv2_b1", 2.19),
        ("hgnetv2_b2", 6.03),
        ("hgnetv2_b4", 13.56),
        ("hgnetv2_b5", 33.33),
    ],
)
def test_named_hgnets_have_the_published_number_of_weights(name, millions):
    with torch.device("meta"):
        backbone = AutoBackbone.from_config(backbone_config(name, "d_fine", 3))

    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet18", 11.18), ("resnet34", 21.28), ("resnet50", 23.51), ("resnet101", 42.50)],
)
def test_named_resnets_have_the_published_number_of_weights(name, millions):
    # torchvision's 11.690, 21.798, 25.557 and 44.549 M without their classifiers of 0.513 or 2.049 M
    with torch.device("meta"):
        backbone = AutoBackbone.from_config(backbone_config(name, "detr", 1))

    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_rt_detr_has_its_own_resnets_and_takes_three_levels():
    config = backbone_config("resnet18", "rt_detr", 3)

    assert config.model_type == "rt_detr_resnet"
    assert channels_of(config) == [128, 256, 512]


def test_channels_are_scaled_in_steps_of_eight():
    narrow = scaled(backbone_config("resnet18", "rt_detr", 3), 0.3)

    assert narrow.hidden_sizes == [16, 40, 80, 152]  # 19.2, 38.4, 76.8, 153.6
    assert channels_of(narrow) == [40, 80, 152]


def test_the_channels_of_an_hgnet_are_scaled_all_along():
    narrow = scaled(backbone_config("hgnetv2_b0", "d_fine", 2), 0.5)

    assert narrow.stem_channels == [3, 8, 8]
    assert narrow.stage_in_channels == [8, 32, 128, 256]
    assert channels_of(narrow) == [256, 512]


def test_a_d_fine_gets_a_smaller_hgnet_by_name():
    student, _ = derive_student(teacher_of("d_fine"), StudentShape(backbone="hgnetv2_b0"), class_names=NAMES)

    assert student.model.config.encoder_in_channels == [256, 512, 1024]
    assert student.read(batch_for("d_fine")).view.strides == (8, 16, 32)


def test_an_lw_detr_takes_the_backbone_of_a_smaller_one(tmp_path):
    small = MODELS["lw_detr"]().config.backbone_config
    small.hidden_size = 8
    smaller = adapter_class("lw_detr")(MODELS["lw_detr"](backbone_config=small))
    save_model(smaller, tmp_path, size=ImageSize(square=64))

    student, report = derive_student(teacher_of("lw_detr"), StudentShape(backbone=str(tmp_path)), class_names=NAMES)

    theirs = backbone_of(smaller.model).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in backbone_of(student.model).state_dict().items())
    assert student.read(batch_for("lw_detr")).view.num_layers == 3
    assert "Encoder" not in report.as_table()


@pytest.mark.parametrize("family", ["lw_detr", "rf_detr"])
def test_the_first_queries_of_every_group_are_inherited(family):
    teacher = teacher_of(family)

    student, _ = derive_student(teacher, StudentShape(num_queries=4), class_names=NAMES)

    for name in ("reference_point_embed", "query_feat"):
        mine, theirs = (getattr(adapter.model.model, name).weight for adapter in (student, teacher))
        assert torch.equal(mine.view(3, 4, -1), theirs.view(3, 10, -1)[:, :4])


def test_heads_of_groups_are_no_decoder_layers():
    teacher = teacher_of("lw_detr")

    student, _ = derive_student(teacher, StudentShape(decoder_layers=1), class_names=NAMES)

    for mine, theirs in zip(
        student.model.model.enc_out_class_embed, teacher.model.model.enc_out_class_embed, strict=True
    ):
        assert torch.equal(mine.weight, theirs.weight)


def test_a_d_fine_with_fewer_layers_gets_the_quality_heads_of_its_layers():
    teacher = teacher_of("d_fine")

    student, _ = derive_student(teacher, StudentShape(decoder_layers=2), class_names=NAMES)

    mine, theirs = student.model.model.decoder.lqe_layers, teacher.model.model.decoder.lqe_layers
    for layer in range(2):
        assert torch.equal(mine[layer].reg_conf.layers[0].weight, theirs[layer + 1].reg_conf.layers[0].weight)


def test_architectures_are_compared_by_names_and_shapes():
    first = backbone_config("resnet18", "detr", 1)

    assert same_architecture(first, backbone_config("resnet18", "detr", 1))
    assert not same_architecture(first, backbone_config("resnet34", "detr", 1))


def tiny_backbone_folder(folder, **overrides):
    settings = dict(embedding_size=8, hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], layer_type="basic")
    backbone = AutoBackbone.from_config(ResNetConfig(**(settings | overrides), out_features=["stage4"]))
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter)
    backbone.save_pretrained(folder)
    return backbone


def test_a_backbone_from_a_folder_brings_its_weights(tmp_path):
    given = tiny_backbone_folder(tmp_path)

    student, report = derive_student(
        teacher_of("conditional_detr"), StudentShape(backbone=str(tmp_path)), class_names=NAMES
    )

    state = backbone_of(student.model).state_dict()
    for name, tensor in given.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(state[name], tensor)
    assert "RANDOM" not in report.as_table()
    assert all(parameter.requires_grad for parameter in backbone_of(student.model).parameters())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone_of(student.model).modules())


def test_a_detectors_backbone_can_be_taken(tmp_path):
    teacher = teacher_of("rt_detr")
    other = new_model(MODELS["rt_detr"]().config, ["a"])
    other.model.save_pretrained(tmp_path)

    student, _ = derive_student(teacher, StudentShape(backbone_weights=str(tmp_path)), class_names=NAMES)

    theirs = backbone_of(other.model).state_dict()
    for name, tensor in backbone_of(student.model).state_dict().items():
        assert torch.equal(tensor, theirs[name])


@pytest.mark.parametrize("make", [True, False], ids=["another architecture", "no folder"])
def test_backbone_weights_that_do_not_fit_are_refused(make, tmp_path):
    if make:
        tiny_backbone_folder(tmp_path, hidden_sizes=[8, 8, 16, 40])

    with pytest.raises(CheckpointError, match="another architecture" if make else "No backbone weights"):
        derive_student(teacher_of("detr"), StudentShape(backbone_weights=str(tmp_path)), class_names=NAMES)
