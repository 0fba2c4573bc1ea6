"""What is evaluated, what is kept of it, and whether Hugging Face's own code finds the same in it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, AutoModelForObjectDetection

import qskd
from builders_runs import edited, entries_of, without_objects
from builders_trainer import adapter_of, dataset, trainer_of
from qskd.data.batch import collate
from qskd.data.synthetic import draw_dataset
from qskd.evaluation.coco_map import CocoEvaluator
from qskd.evaluation.detections import detections_of
from qskd.evaluation.streaming import evaluate_detector
from qskd.models.loading import load_model

TEACHER = Path(qskd.__file__).parent / "assets" / "demo_teacher"
EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Scenes of the size the demo's teacher was trained on, so that it finds something."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_dataset(folder, train=8, val=6, size=128, seed=3)
    return folder


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory) -> Path:
    """Steps at learning rates 0, 0.005 and 0.01, which ruin a good detector: its first evaluation is its best."""
    folder = tmp_path_factory.mktemp("trained")
    rates = {"learning_rate": 1e-2, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}
    options = {"max_steps": 3, "max_grad_norm": 0.0, "save_total_limit": 3, **rates, **EVERY_STEP}
    trainer = trainer_of(folder, drawn, load_model(TEACHER), size=128, per_device_train_batch_size=2, **options)
    trainer.train()
    trainer.keep("last")
    return folder


def best_step(folder: Path) -> tuple[int, float]:
    evaluated = entries_of(folder, "eval_AP")
    best = max(evaluated, key=lambda entry: entry["eval_AP"])  # the first of equals
    return best["step"], best["eval_AP"]


def test_the_best_weights_are_the_average_at_the_evaluation_of_highest_ap(trained):
    step, ap = best_step(trained)
    assert step == 1
    assert ap > 0.3
    kept = load_model(trained / "best").model.state_dict()
    checkpoint = trained / "checkpoints" / f"checkpoint-{step}"
    average = load_file(checkpoint / "average.safetensors")
    student = load_file(checkpoint / "distiller.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in average.items())
    moved = [name for name in kept if "running_mean" in name]  # what a step at rate 0 changes
    assert not any(torch.equal(kept[name], student[f"student.{name}"]) for name in moved)
    assert moved


def test_the_kept_model_scores_what_was_logged(trained, drawn):
    _, ap = best_step(trained)
    assert qskd.evaluate(model=trained / "best", data=drawn)["AP"] == pytest.approx(ap, abs=1e-6)
    last = entries_of(trained, "eval_AP")[-1]["eval_AP"]
    assert qskd.evaluate(model=trained / "last", data=drawn)["AP"] == pytest.approx(last, abs=1e-6)


def test_transformers_finds_the_same_in_the_kept_model(trained, drawn):
    """Plain Hugging Face code on the image files; it returns as many detections as there are queries."""
    processor = AutoImageProcessor.from_pretrained(trained / "best")
    model = AutoModelForObjectDetection.from_pretrained(trained / "best").eval()
    data = dataset(drawn, "val", size=128)
    ours = load_model(trained / "best")
    for position in range(len(data)):
        record = data.index.images[position]
        inputs = processor(images=Image.open(record.path), return_tensors="pt")
        with torch.no_grad():
            (theirs,) = processor.post_process_object_detection(
                model(**inputs), threshold=0.0, target_sizes=[(record.height, record.width)]
            )
            batch = collate([data[position]])
            ((scores, labels, boxes),) = detections_of(ours.read(batch).view, batch.original_sizes)
        count = len(theirs["scores"])
        assert count == model.config.num_queries
        assert scores[:count] == pytest.approx(theirs["scores"].numpy(), abs=1e-5)
        sure = scores[:count] > 0.05  # below, equal scores may change places
        assert (labels[:count] == theirs["labels"].numpy())[sure].all()
        np.testing.assert_allclose(boxes[:count][sure], theirs["boxes"].numpy()[sure], atol=0.05)


def test_without_an_average_the_student_itself_is_evaluated(tmp_path, scenes):
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=1, ema_decay=0.0)
    assert trainer.evaluated.model is trainer.distiller.student
    averaged = trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=1, ema_decay=0.9)
    assert averaged.evaluated.model is averaged.average.model
    assert averaged.evaluated.family == "detr"


def test_the_average_follows_every_step(tmp_path, scenes):
    """Two steps: average = 1/4 (2/11 w0 + 9/11 w1) + 3/4 w2."""
    student = adapter_of("detr")
    name = "class_labels_classifier.weight"
    weights = [student.model.get_parameter(name).detach().double().clone()]
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer_of(tmp_path, scenes, student, **options).train()
    for step in (1, 2):
        saved = load_file(tmp_path / "checkpoints" / f"checkpoint-{step}" / "distiller.safetensors")
        weights.append(saved[f"student.{name}"].double())
    wanted = (2 / 11 * weights[0] + 9 / 11 * weights[1]) / 4 + 3 / 4 * weights[2]
    assert not torch.equal(weights[1], weights[2])
    found = load_file(tmp_path / "checkpoints" / "checkpoint-2" / "average.safetensors")[name].double()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)


def test_evaluation_leaves_the_student_in_training_mode_and_as_it_was(tmp_path, scenes):
    trainer = trainer_of(tmp_path, scenes, adapter_of("rt_detr"), max_steps=1, ema_decay=0.0)
    student = trainer.distiller.student.train()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    trainer.evaluate()
    assert student.training
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_the_trainers_metrics_are_those_of_the_evaluator_alone(tmp_path, scenes):
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=1, per_device_eval_batch_size=4)
    found = trainer.evaluate(metric_key_prefix="val")
    data = dataset(scenes, "val")
    evaluator = CocoEvaluator(data.index.ground_truth(), data.index.category_ids)
    alone = evaluate_detector(trainer.evaluated, DataLoader(data, batch_size=2, collate_fn=collate), evaluator)
    wanted = {f"val_{name}": value for name, value in alone.as_dict().items() if name != "per_class"}
    assert found == {name: value if value is None else pytest.approx(value, abs=1e-6) for name, value in wanted.items()}


def test_validation_images_without_objects_choose_no_best_model(tmp_path, scenes, capsys):
    """AP is undefined there: nothing to log, nothing to choose by, no crash."""
    nothing = edited(scenes, tmp_path / "nothing", without_objects, "val")
    options = {"max_steps": 2, **EVERY_STEP}
    trainer = trainer_of(tmp_path / "run", nothing, adapter_of("detr"), **options)
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.state.best_metric is None
    assert not (tmp_path / "run" / "best").exists()
    (first, _) = entries_of(tmp_path / "run", "eval_num_images")
    assert "eval_AP" not in first
    assert "no validation image holds an object" in capsys.readouterr().out


def test_another_metric_may_choose_the_best_model(tmp_path, drawn):
    options = {"max_steps": 1, "metric_for_best_model": "AP50", "learning_rate": 0.0, **EVERY_STEP}
    trainer = trainer_of(tmp_path, drawn, load_model(TEACHER), size=128, per_device_train_batch_size=2, **options)
    trainer.train()
    (entry,) = entries_of(tmp_path, "eval_AP50")
    assert trainer.state.best_metric == entry["eval_AP50"] > entry["eval_AP"]


def test_keeping_replaces_what_was_kept_and_leaves_nothing_beside_it(tmp_path, scenes):
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=1)
    for marker in ("old", "new"):
        trainer.keep("best")
        if marker == "old":
            (tmp_path / "best" / "left_over").write_text("x")
    names = {path.name for path in (tmp_path / "best").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_batches_that_training_leaves_out_are_evaluated_nevertheless(tmp_path, scenes):
    """6 validation images in batches of 4, 16 training images in batches of 6."""
    options = {"per_device_train_batch_size": 6, "per_device_eval_batch_size": 4, "dataloader_drop_last": True}
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=-1, num_train_epochs=2, **options)
    assert trainer.evaluate()["eval_num_images"] == 6
    assert trainer.args.steps_for(16) == 4
    assert trainer.train().global_step == 4
