"""Steps of the trainer; what it keeps and how it resumes are tested beside this."""

import pytest
import torch

from builders_runs import edited, entries_of, without_objects
from builders_trainer import adapter_of, trainer_of
from qskd.trainer.trainer import decays, decays_by_name

EVERY_FAMILY = pytest.mark.parametrize(
    "name", ["detr", "conditional_detr", "dab-detr", "rt_detr", "deformable_detr-two-stage"]
)


def parts_of(entry):
    return {name: value for name, value in entry.items() if name.startswith(("loss_", "proposal_", "lapd", "agfd"))}


def first_entry(trainer):
    trainer.train()
    return entries_of(trainer.run_folder)[0]


@EVERY_FAMILY
def test_every_part_is_logged_and_the_parts_make_up_the_loss(tmp_path, scenes, name):
    """The last step of the epoch has one micro-batch of the two: 16 images in batches of 6."""
    student, teacher = adapter_of(name), adapter_of(name, decoder_layers=2)
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 6}
    trainer = trainer_of(tmp_path, scenes, student, teacher, max_steps=2, **options)
    trainer.train()
    entries = entries_of(tmp_path)
    assert [entry["step"] for entry in entries] == [1, 2]
    for entry in entries:
        parts = parts_of(entry)
        assert {"agfd", "lapd_class", "lapd_box", "lapd_giou", "loss_giou"} <= parts.keys()
        assert all(value > 0 for value in parts.values())
        assert entry["loss"] == pytest.approx(sum(parts.values()), rel=1e-5)


def test_a_log_line_is_the_mean_of_the_steps_since_the_last_one(tmp_path, scenes):
    for steps in (1, 3):
        trainer_of(tmp_path / f"{steps}", scenes, adapter_of("detr"), max_steps=3, logging_steps=steps).train()
    each, (mean,) = entries_of(tmp_path / "1"), entries_of(tmp_path / "3")
    assert len(each) == 3
    for part in ("loss", *parts_of(mean)):
        assert mean[part] == pytest.approx(sum(entry[part] for entry in each) / 3, rel=1e-5), part


@EVERY_FAMILY
def test_images_without_objects_are_learnt_from(tmp_path, scenes, name):
    """No object in any image: still every part, a finite loss, and the background to learn."""
    nothing = edited(scenes, tmp_path / "nothing", without_objects, "train")
    student, teacher = adapter_of(name), adapter_of(name, decoder_layers=2)
    before = {key: tensor.clone() for key, tensor in student.model.state_dict().items()}
    trainer = trainer_of(tmp_path / "run", nothing, student, teacher, max_steps=2, gradient_accumulation_steps=2)
    trainer.train()
    for entry in entries_of(tmp_path / "run"):
        parts = parts_of(entry)
        assert entry["loss"] == pytest.approx(sum(parts.values()), rel=1e-5)
        taught = [value for part, value in parts.items() if part.startswith(("lapd", "agfd"))]
        boxes = [value for part, value in parts.items() if "box" in part or "giou" in part]
        assert len(taught) == 4
        assert not any(taught + boxes)
        assert 0 < entry["loss"] < 1e4
    after = student.model.state_dict()
    assert all(tensor.isfinite().all() for tensor in after.values())
    heads = [
        key for key in before if "class" in key and "denoising" not in key and not torch.equal(before[key], after[key])
    ]
    assert heads


@pytest.mark.parametrize(("family", "tolerance"), [("rt_detr", 0.1), ("deformable_detr", 0.02)])
def test_bfloat16_is_finite_and_near_float32(family, tolerance, tmp_path, scenes):
    """At random weights, rounding decides which tokens become an RT-DETR's queries."""
    found = []
    for bf16 in (False, True):
        student, teacher = adapter_of(family), adapter_of(family, decoder_layers=2)
        trainer = trainer_of(tmp_path / f"{bf16}", scenes, student, teacher, max_steps=3, bf16=bf16)
        trainer.distiller.terms["lapd"].hard_negative_box_weight = 1.0
        trainer.train()
        assert {parameter.dtype for parameter in student.model.parameters()} == {torch.float32}
        assert all(tensor.isfinite().all() for tensor in student.model.state_dict().values())
        found.append(entries_of(tmp_path / f"{bf16}"))
    exact, rough = found
    assert exact[0]["loss"] != rough[0]["loss"]
    assert rough[0]["loss"] == pytest.approx(exact[0]["loss"], rel=tolerance)


def test_the_backbone_learns_at_its_own_rate(tmp_path, scenes):
    options = {"learning_rate": 2e-3, "backbone_lr_scale": 0.1, "weight_decay": 0.05, "max_steps": 1}
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), **options)
    next(trainer.distiller.student.model.backbone.parameters()).requires_grad_(False)
    trainer.train()
    names = {id(parameter): name for name, parameter in trainer.distiller.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    trained = {name for name, parameter in trainer.distiller.named_parameters() if parameter.requires_grad}
    assert found.keys() == trained
    assert len(trained) == len(names) - 1
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(trained)
    rates = {name: rate for name, (rate, _) in found.items()}
    assert rates == {name: pytest.approx(2e-4 if ".backbone." in name else 2e-3) for name in trained}
    assert any(".backbone." in name for name in trained)
    assert found["student.class_labels_classifier.weight"][1] == 0.05
    assert found["student.class_labels_classifier.bias"][1] == 0.0
    assert {decay for name, (_, decay) in found.items() if "layer_norm" in name} == {0.0}


@pytest.mark.parametrize("name", ["rt_detr", "deformable_detr", "d_fine", "lw_detr"])
def test_no_norm_decays_whatever_it_is_called(tmp_path, scenes, name):
    """Those of input projections are called "0.1": a list's second module, which no rule by names finds."""
    trainer = trainer_of(tmp_path, scenes, adapter_of(name), weight_decay=0.05, max_steps=1)
    decays = {
        id(one): group["weight_decay"] for group in trainer.create_optimizer().param_groups for one in group["params"]
    }
    norms = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm)
    modules = [module for module in trainer.distiller.modules() if isinstance(module, norms)]
    found = [decays[id(one)] for module in modules for one in module.parameters() if one.requires_grad]
    assert found
    assert set(found) == {0.0}
    layers = [module for module in trainer.distiller.modules() if isinstance(module, torch.nn.Linear)]
    assert {decays[id(layer.weight)] for layer in layers if layer.weight.requires_grad} == {0.05}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("student.layer.0.weight", (3, 4), True),
        ("student.conv.weight", (3, 4, 1, 1), True),
        ("student.input_proj.0.1.weight", (4,), False),
        ("student.layer.bias", (4,), False),
        ("student.backbone.attention.relative_position_bias_table", (9, 4), False),
        ("student.backbone.grn.bias", (1, 1, 1, 4), False),
    ],
)
def test_weight_decay_is_for_matrices_that_are_no_biases(name, shape, expected):
    assert decays(name, torch.zeros(shape)) == expected


def test_where_names_tell_the_same_older_checkpoints_fit():
    told = {name: decays_by_name(adapter_of(name).model) for name in ("detr", "conditional_detr", "rt_detr", "d_fine")}
    assert told == {"detr": True, "conditional_detr": True, "rt_detr": False, "d_fine": False}


def test_projections_are_trained_with_the_student(tmp_path, scenes):
    """A teacher of 64 channels, a student of 32."""
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), adapter_of("detr", d_model=64), max_steps=1)
    before = {key: tensor.clone() for key, tensor in trainer.distiller.projections.state_dict().items()}
    assert sorted(before.values(), key=torch.Tensor.numel)[-1].shape == (64, 32)
    trainer.train()
    after = trainer.distiller.projections.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"distillation_warmup_steps": 2}, (0.5, 1.0, 1.0)),
        ({"distillation_schedule": "linear"}, (1.0, 2 / 3, 1 / 3)),
        ({"distillation_schedule": "cosine"}, (1.0, 0.75, 0.25)),
        ({"distillation_schedule": "linear", "distillation_warmup_steps": 2, "max_steps": 4}, (0.5, 1.0, 1.0, 0.5)),
    ],
    ids=["warm-up", "linear", "cosine", "both"],
)
def test_distillation_grows_over_its_warmup_and_fades_to_the_end(tmp_path, scenes, options, factors):
    """Of the same losses a share in every step; detection is not touched."""
    runs = []
    for changes in ({}, options):
        student, teacher = adapter_of("detr", dropout=0.0), adapter_of("detr", decoder_layers=2)
        # A learning rate of 0: every step sees the same weights.
        settings = {"learning_rate": 0.0, "max_steps": len(factors)} | changes
        folder = tmp_path / f"{len(runs)}"
        trainer_of(folder, scenes, student, teacher, **settings).train()
        runs.append(entries_of(folder))
    for plain, changed, factor in zip(*runs, factors, strict=True):
        for part, value in parts_of(plain).items():
            scale = factor if part.startswith(("lapd", "agfd")) else 1.0
            assert changed[part] == pytest.approx(scale * value, rel=1e-5), part


def test_the_teacher_neither_changes_nor_leaves_evaluation_mode(tmp_path, scenes):
    teacher = adapter_of("rt_detr", decoder_layers=2)
    before = {key: tensor.clone() for key, tensor in teacher.model.state_dict().items()}
    trainer_of(tmp_path, scenes, adapter_of("rt_detr"), teacher, max_steps=2, weight_decay=0.5).train()
    assert all(torch.equal(before[key], tensor) for key, tensor in teacher.model.state_dict().items())
    assert not any(module.training for module in teacher.model.modules())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_a_run_without_validation_images_does_not_evaluate(tmp_path, scenes):
    trainer = trainer_of(
        tmp_path, scenes, adapter_of("detr"), max_steps=2, eval_strategy="steps", eval_steps=1, has_val=False
    )
    trainer.train()
    assert entries_of(tmp_path, "eval_AP50") == []
    assert not (tmp_path / "best").exists()


def test_a_process_without_any_loss_part_still_joins_the_mean(tmp_path, scenes, monkeypatch):
    """Its images held no object, and another process waits for it."""
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"))
    monkeypatch.setattr("qskd.trainer.trainer.gather_object", lambda own: [*own, {"loss_box": 3.0}])
    trainer._steps_in_sums = 2
    trainer.log({"loss": 1.0})
    assert entries_of(tmp_path)[-1]["loss_box"] == 1.5
