"""What a run says of its start: the same for all seeds, another one for other weights."""

import json
from dataclasses import fields

import pytest
import torch

from builders_runs import NAMES
from qskd.errors import ConfigError
from qskd.models.initialising import backbone_of
from qskd.models.loading import load_model
from qskd.models.shaping import StudentShape
from qskd.runs.building import open_model
from qskd.runs.options import PairOptions
from qskd.runs.starting import _shape_of, make_student, start_of

OTHERS = [*NAMES[:-1], "another"]  # a head row of every seed's own


@pytest.fixture(scope="module")
def teacher(tiny_folders):
    return load_model(tiny_folders["rt_detr_teacher"])


def start(teacher, seed=0, **options):
    torch.manual_seed(seed)
    return make_student(PairOptions(**options), teacher, OTHERS, seed)[2]


def test_seeds_begin_alike(teacher, tiny_folders):
    folder = tiny_folders["rt_detr_student"]
    for options in (
        {"student": str(folder)},
        {"student": str(folder / "config.json")},
        {"student_num_queries": 7},
        {"student_num_queries": 7, "inherit": False},
    ):
        assert start(teacher, seed=1, **options) == start(teacher, seed=2, **options)


def test_weights_and_configurations_are_told_apart(teacher, tiny_folders, tmp_path):
    folder = tiny_folders["rt_detr_student"]
    configured = str(folder / "config.json")
    random, loaded = start(teacher, student=configured, inherit=False), start(teacher, student=str(folder))
    assert random["weights"] == "random weights"
    assert loaded["weights"].startswith("weights ")
    assert loaded != start(teacher, student=str(tiny_folders["rt_detr_teacher"]))
    assert start(teacher, student=configured)["weights"] == loaded_from_teacher(teacher)
    derived = [start(teacher, student_num_queries=7, inherit=inherit)["weights"] for inherit in (True, False)]
    assert derived == [loaded_from_teacher(teacher), "random weights"]
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(json.loads((folder / "config.json").read_text()) | {"dropout": 0.3}))
    assert start(teacher, student=str(changed))["configuration"] != random["configuration"]
    backbone = start(teacher, student_num_queries=7, student_backbone_weights=str(tiny_folders["rt_detr_teacher"]))
    assert backbone["weights"].endswith(f"and backbone {tiny_folders['rt_detr_teacher']}")


def loaded_from_teacher(teacher):
    return start_of("teacher", teacher)["weights"].replace("weights", "weights of teacher")


def test_a_configuration_may_begin_with_a_pretrained_backbone(teacher, tiny_folders):
    configuration = str(tiny_folders["rt_detr_teacher"] / "config.json")
    weights = str(tiny_folders["rt_detr_teacher"])

    opened = open_model(configuration, OTHERS, box_frame="content", backbone_weights=weights)

    own, theirs = (backbone_of(model).state_dict() for model in (opened.model, teacher.model))
    assert all(torch.equal(own[name], theirs[name]) for name in own if "num_batches" not in name)
    norms = [module for module in backbone_of(opened.model).modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    began = start(teacher, student=configuration, student_backbone_weights=weights, inherit=False)
    assert began["weights"] == f"random weights and backbone {weights}"
    assert start_of(configuration, opened, weights) == began


def test_a_trained_model_takes_no_other_backbone(teacher, tiny_folders):
    folder = str(tiny_folders["rt_detr_student"])
    with pytest.raises(ConfigError, match="has weights of its own"):
        start(teacher, student=folder, student_backbone_weights=folder)


def test_a_plain_training_says_the_same_as_a_distillation(teacher, tiny_folders):
    for source in (str(tiny_folders["rt_detr_student"]), str(tiny_folders["rt_detr_student"] / "config.json")):
        assert start_of(source, open_model(source, OTHERS, box_frame="content")) == start(
            teacher, student=source, inherit=False
        )


def test_every_part_of_a_shape_has_a_flag():
    shape = {"backbone": "resnet18", "backbone_weights": "w", "backbone_width": 0.5, "encoder_layers": 1}
    shape |= {"decoder_layers": 2, "num_queries": 3, "hidden_size": 8, "ffn_size": 16, "hidden_expansion": 0.25}
    assert shape.keys() == {field.name for field in fields(StudentShape)}
    pair = PairOptions(**{f"student_{name}": value for name, value in shape.items()})
    assert _shape_of(pair) == StudentShape(**shape)
