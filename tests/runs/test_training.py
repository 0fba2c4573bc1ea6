"""`train` from options to a finished folder, and what it does with bad input."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch._dynamo import register_backend

import qskd
from builders_runs import NAMES, edited, entries_of, tiny_run, without_objects
from qskd.data.sources import open_source
from qskd.errors import CheckpointError, ConfigError, DataError, NonFiniteLoss
from qskd.evaluation.coco_map import CocoEvaluator
from qskd.evaluation.kept import KeptDetections, images_digest
from qskd.models.loading import load_model
from qskd.runs.training import Job, loading_processes
from qskd.trainer import DistillationConfig

STUDENT = Path(qskd.__file__).parent / "assets" / "demo_student.json"
EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def train(folder, data, model, **options):
    return qskd.train(model=model, **tiny_run(folder, data, **options))


@pytest.fixture(scope="module")
def finished(scenes, tiny_folders, tmp_path_factory):
    """Two steps of RT-DETR, evaluated and saved after each."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return train(folder, scenes, tiny_folders["rt_detr_student"], max_steps=2, **EVERY_STEP)


def test_a_finished_run_leaves_its_folder_as_promised(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {"best", "checkpoints", "config.yaml", "eval", "last", "metrics.jsonl", "summary.json"}
    assert finished.model == finished.folder / "best"
    kept = {path.name for path in finished.model.iterdir()}
    assert kept == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def test_the_summary_says_what_was_run_and_what_came_out(finished):
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(finished.summary))
    told = {
        key: summary[key] for key in ("name", "kind", "method", "family", "seed", "steps", "resumed", "train_images")
    }
    assert told == {
        "name": "finished",
        "kind": "train",
        "method": "none",
        "family": "rt_detr",
        "seed": 42,
        "steps": 2,
        "resumed": False,
        "train_images": 16,
    }
    assert summary["image_size"] == [64]
    assert summary["start"]["weights"].startswith("weights ")
    assert summary["metrics"] == json.loads((finished.folder / "eval" / "val.json").read_text())
    assert set(summary["metrics"]["per_class"]) == set(NAMES)
    model = load_model(finished.model).model
    assert summary["cost"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert summary["cost"]["gflops"] > 0
    assert summary["environment"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_the_kept_model_is_measured_as_it_lies_on_disk(finished, scenes):
    assert qskd.evaluate(model=finished.model, data=scenes) == finished.metrics
    logged = max(entry["eval_AP"] for entry in entries_of(finished.folder, "eval_AP"))
    assert finished.metrics["AP"] == pytest.approx(logged, abs=1e-6)


def test_the_detections_are_kept_that_were_measured(finished, scenes):
    kept = KeptDetections.load(finished.folder / "eval" / "val_detections.npz")
    index = open_source(scenes).load("val")
    assert kept.images == images_digest(index.images.ids, index.images.file_names)
    evaluator = CocoEvaluator(index.ground_truth(), index.category_ids)
    evaluator.merge([kept.state])
    assert evaluator.result().as_dict() == finished.metrics
    assert max(kept.state.counts) <= 100


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(finished, scenes, tiny_folders):
    before = (finished.folder / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match=r"holds another run .* --resume_from_checkpoint last"):
        train(finished.folder, scenes, tiny_folders["detr_student"])
    assert (finished.folder / "metrics.jsonl").read_text() == before


def test_a_finished_run_can_be_continued_for_more_steps(finished, scenes, tiny_folders, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "longer")
    options = {"max_steps": 3, "resume_from_checkpoint": True, **EVERY_STEP}
    longer = train(folder, scenes, tiny_folders["rt_detr_student"], **options)
    assert (longer.summary["steps"], longer.summary["resumed"]) == (3, True)
    assert [entry["step"] for entry in entries_of(folder)] == [1, 2, 3]
    assert [entry["step"] for entry in entries_of(folder, "train_runtime")] == [3]
    assert "resume_from_checkpoint" not in (folder / "config.yaml").read_text()


def test_a_configuration_is_trained_from_scratch_on_the_datas_classes(scenes, tiny_folders, tmp_path):
    """Paths instead of text, a configuration alone, files instead of a folder, no validation images."""
    config = json.loads((tiny_folders["detr_student"] / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "thing"}, {"thing": 0}
    (tmp_path / "model.json").write_text(json.dumps(config))
    files = {
        "train_annotations": scenes / "annotations" / "instances_train.json",
        "train_images": scenes / "images" / "train",
        "data": None,
    }
    options = tiny_run(tmp_path / "run", scenes, eval_strategy="epoch", max_steps=1) | files
    made = qskd.train(model=tmp_path / "model.json", **options)
    assert made.model == tmp_path / "run" / "last"
    assert made.metrics == {}
    assert tuple(load_model(made.model).id2label.values()) == NAMES
    assert "train_annotations: " + str(files["train_annotations"]) in (tmp_path / "run" / "config.yaml").read_text()


def test_a_training_split_without_objects_is_trained_on(scenes, tiny_folders, tmp_path):
    data = edited(scenes, tmp_path / "data", without_objects, "train", "val")
    made = train(tmp_path / "run", data, tiny_folders["rt_detr_student"], max_steps=1, **EVERY_STEP)
    assert made.metrics["AP"] is None
    assert made.model.name == "last"


def test_what_was_dropped_from_the_data_is_told(scenes, tiny_folders, tmp_path, capsys):
    def flatten(content):
        content["annotations"][0]["bbox"][2] = 0

    data = edited(scenes, tmp_path / "data", flatten, "train")
    train(tmp_path / "run", data, tiny_folders["detr_student"], max_steps=1)
    assert "train: 1 degenerate boxes" in capsys.readouterr().out


def truncate(path):
    path.write_text(path.read_text()[:-50])


def change(key, position, **fields):
    def apply(path):
        content = json.loads(path.read_text())
        content[key][position].update(fields)
        path.write_text(json.dumps(content))

    return apply


BAD_ANNOTATIONS = [
    (lambda path: path.unlink(), "holds images of the split 'train', but there are no annotations of them"),
    (truncate, "not valid JSON at line 1, .* Is the file truncated"),
    (lambda path: path.write_text("[]"), "holds a list"),
    (change("images", 3, file_name="gone.jpg"), "1 of 16 image files are not in .*: gone.jpg"),
    (change("images", 3, id=1), "image id 1 occurs 2 times"),
    (change("annotations", 3, id=1), "annotation id 1 occurs 2 times"),
    (change("annotations", 0, image_id=999), "annotation id 1 belongs to image 999"),
    (change("annotations", 0, category_id=77), "annotation id 1 belongs to category 77"),
    (change("annotations", 0, bbox=[1, 2, float("nan"), 4]), "annotation id 1 has bbox"),
    (change("annotations", 0, bbox=[1, 2, 3]), "annotation id 1 has bbox"),
    (change("images", 3, height=65), "the image is 64 x 64 pixels .* says 64 x 65"),
]


@pytest.mark.parametrize(("spoil", "told"), BAD_ANNOTATIONS)
def test_bad_annotations_stop_the_run_before_it_begins(scenes, tiny_folders, tmp_path, spoil, told):
    data = edited(scenes, tmp_path / "data", lambda content: None)
    spoil(data / "annotations" / "instances_train.json")
    with pytest.raises(DataError, match=told) as caught:
        train(tmp_path / "run", data, tiny_folders["detr_student"])
    assert str(data) in str(caught.value)
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"model": None}, ConfigError, "--model was not given; it takes a hub id"),
        ({"model": "nowhere/at/all"}, CheckpointError, "nowhere/at/all does not exist"),
        ({"model": "nowhere.json"}, ConfigError, "nowhere.json is no file"),
        ({"data": None}, ConfigError, "No data: give --data"),
        ({"data": "nowhere"}, DataError, "'nowhere' is no folder here"),
        ({"image_size": 50}, ConfigError, "Try 64"),
        ({"flip": 1.5}, ConfigError, "flip is 1.5; expected 0 to 1"),
        ({"ema_decay": 2.0}, ConfigError, "ema_decay is 2.0"),
        ({"leaning_rate": 1e-3}, ConfigError, "no option 'leaning_rate'. Did you mean 'learning_rate'"),
        ({"teacher": "t"}, ConfigError, "no option 'teacher'"),
        ({"resume_from_checkpoint": "last"}, ConfigError, "no complete checkpoint"),
    ],
)
def test_bad_options_stop_the_run_before_it_begins(scenes, tiny_folders, tmp_path, monkeypatch, options, kind, told):
    monkeypatch.chdir(tmp_path)
    given = tiny_run(tmp_path / "run", scenes) | {"model": str(tiny_folders["rt_detr_student"])}
    with pytest.raises(kind, match=told):
        qskd.train(**(given | options))
    assert not list(tmp_path.rglob("*"))[1:]  # at most an empty run folder


def test_an_image_that_turns_out_damaged_can_be_mended_and_the_run_started_again(scenes, tiny_folders, tmp_path):
    """Its header is sound, so it is found when it is read: before any checkpoint, the folder is given back."""
    data = shutil.copytree(scenes, tmp_path / "data")
    whole = {path: path.read_bytes() for path in (data / "images" / "train").iterdir()}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
        Image.open(path).close()
    with pytest.raises(DataError, match="the image cannot be decoded") as caught:
        train(tmp_path / "run", data, tiny_folders["detr_student"], max_steps=1)
    assert str(data / "images" / "train") in str(caught.value)
    for path, content in whole.items():
        path.write_bytes(content)
    assert train(tmp_path / "run", data, tiny_folders["detr_student"], max_steps=1).summary["steps"] == 1


def test_a_run_that_diverged_can_be_started_again_or_continued(scenes, tiny_folders, tmp_path):
    folder, model = tmp_path / "run", tiny_folders["detr_student"]
    with pytest.raises(NonFiniteLoss, match="No good checkpoint"):
        train(folder, scenes, model, learning_rate=1e30)
    assert {path.name for path in folder.iterdir()} == {"metrics.jsonl", "nonfinite_step2.pt"}
    made = train(folder, scenes, model, max_steps=2)
    assert [entry["step"] for entry in entries_of(folder)] == [1, 2]
    assert made.summary["steps"] == 2
    assert Path(folder / "config.yaml").is_file()


def test_loading_processes_that_keep_images_outlive_an_epoch(scenes, tmp_path):
    options = tiny_run(tmp_path / "run", scenes, max_steps=6) | {"model": STUDENT}
    plain = qskd.train(**options)
    kept = qskd.train(
        **options | {"output_dir": str(tmp_path / "kept"), "cache_images": "memory", "dataloader_num_workers": 1}
    )

    def losses(run):
        return [entry["loss"] for entry in entries_of(run.folder) if "loss" in entry and "grad_norm" in entry]

    # Of four steps; a new epoch of processes that stay draws one random number less, which denoising goes on from.
    assert losses(kept)[:4] == pytest.approx(losses(plain)[:4], rel=1e-5)
    assert len(losses(kept)) == 6


def test_caches_of_all_processes_of_a_machine_are_counted(monkeypatch, tmp_path):
    alone = DistillationConfig(output_dir=str(tmp_path), use_cpu=True)
    assert loading_processes(alone) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    alone.dataloader_num_workers = 3
    assert loading_processes(alone) == 24


def test_a_channels_last_run_learns_the_same_and_can_be_resumed_as_such_alone(scenes, tiny_folders, tmp_path):
    model, asked = tiny_folders["detr_student"], {"save_strategy": "steps", "save_steps": 1}
    plain = train(tmp_path / "plain", scenes, model, max_steps=2)
    train(tmp_path / "last", scenes, model, max_steps=1, channels_last=True, **asked)
    resumed = {"max_steps": 2, "resume_from_checkpoint": True, **asked}
    with pytest.raises(CheckpointError, match="channels last is True, this run's is None"):
        # The fused optimiser would take its state for that of other weights.
        train(tmp_path / "last", scenes, model, **resumed)
    run = train(tmp_path / "last", scenes, model, channels_last=True, **resumed)
    losses = [[entry["loss"] for entry in entries_of(one.folder)] for one in (plain, run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    kept = load_model(run.model).model.state_dict()
    for name, weight in load_model(plain.model).model.state_dict().items():
        torch.testing.assert_close(kept[name], weight, rtol=1e-3, atol=1e-4)


def test_norms_that_are_frozen_already_cannot_be_frozen(scenes, tiny_folders, tmp_path):
    with pytest.raises(ConfigError, match="no batch norm of the student's backbone learns"):
        train(tmp_path, scenes, tiny_folders["detr_student"], freeze_batch_norm=True)


_GRAPHS = []  # of those that torch compiled: whether they were to be differentiated


@register_backend
def counting(module, inputs):
    _GRAPHS.append(torch.is_grad_enabled())
    return module.forward


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    _GRAPHS.clear()
    yield _GRAPHS
    torch._dynamo.reset()


def test_a_compiled_run_learns_the_same(scenes, tiny_folders, tmp_path, graphs):
    plain = train(tmp_path / "plain", scenes, STUDENT, max_steps=2)
    assert graphs == []
    run = train(tmp_path / "compiled", scenes, STUDENT, max_steps=2, torch_compile_backend="counting")
    assert graphs
    losses = [[entry["loss"] for entry in entries_of(one.folder)] for one in (plain, run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert "torch_compile_backend: counting" in (run.folder / "config.yaml").read_text()
    assert load_model(run.model).model.state_dict().keys() == load_model(plain.model).model.state_dict().keys()


def test_the_teachers_backbone_is_compiled_too(scenes, tiny_folders, tmp_path, graphs):
    options = tiny_run(tmp_path / "run", scenes, max_steps=1) | {
        "teacher": str(tiny_folders["rt_detr_teacher"]),
        "student": str(tiny_folders["rt_detr_student"]),
        "preflight": False,
    }
    plain = qskd.distill(**options)
    run = qskd.distill(**options | {"output_dir": str(tmp_path / "compiled"), "torch_compile_backend": "counting"})
    assert set(graphs) == {True, False}
    losses = [[entry["loss"] for entry in entries_of(one.folder)] for one in (plain, run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(("backend", "mode"), [("inductor", "fast"), ("eager", "reduce-overhead")])
def test_a_mode_that_a_backend_has_not_is_refused(scenes, tmp_path, backend, mode):
    with pytest.raises(ConfigError, match=f"torch_compile_mode is '{mode}' with the backend {backend}"):
        train(tmp_path, scenes, STUDENT, torch_compile_backend=backend, torch_compile_mode=mode)


def test_a_run_with_a_pretrained_backbone_is_resumed_as_such_alone(scenes, tiny_folders, tmp_path):
    configuration, asked = (
        str(tiny_folders["rt_detr_teacher"] / "config.json"),
        {"save_strategy": "steps", "save_steps": 1},
    )
    weights = str(tiny_folders["rt_detr_teacher"])
    train(tmp_path, scenes, configuration, max_steps=1, backbone_weights=weights, **asked)
    written = (tmp_path / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match="backbone weights is True, this run's is None"):
        train(tmp_path, scenes, configuration, max_steps=2, resume_from_checkpoint=True, **asked)
    assert (tmp_path / "config.yaml").read_text() == written
    run = train(
        tmp_path, scenes, configuration, max_steps=2, backbone_weights=weights, resume_from_checkpoint=True, **asked
    )
    assert run.summary["steps"] == 2


def test_a_backend_that_torch_has_not_is_refused(scenes, tmp_path):
    with pytest.raises(ConfigError, match=r"torch_compile_backend is 'induktor'; this torch has .*inductor"):
        train(tmp_path, scenes, STUDENT, torch_compile_backend="induktor")


def other_configuration(folder, source, **changes):
    """A copy of a model whose weights are the same and whose configuration is not."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "config.json").read_text())
    assert content.keys() >= changes.keys()
    (folder / "config.json").write_text(json.dumps(content | changes))
    return folder


def fewer(content):
    content["annotations"] = content["annotations"][:2]


def a_crowd(content):
    content["annotations"][0]["iscrowd"] = 1


def test_a_rate_that_follows_ap_is_resumed_with_as_many_evaluations(tmp_path):
    def evaluations(**options):
        config = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, **options)
        return Job._evaluations(SimpleNamespace(config=config))

    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"}
    assert evaluations(eval_strategy="steps", eval_steps=2) is None
    assert evaluations(**plateau, eval_steps=2) == evaluations(**plateau, eval_steps=2)
    assert evaluations(**plateau, eval_steps=2) != evaluations(**plateau, eval_steps=3)


def test_what_no_resumed_run_may_change(finished, scenes, tiny_folders, tmp_path):
    """Each of these would go on with other losses, or compare its AP with one that was measured elsewhere."""
    model = tiny_folders["rt_detr_student"]
    wider = other_configuration(tmp_path / "wider", model, weight_loss_giou=50.0)
    changes = {
        "student's reading": [{"model": wider}, {"box_frame": "canvas"}],
        "training data": [{"data": edited(scenes, tmp_path / "crowd", a_crowd, "train")}],
        "validation data": [{"data": edited(scenes, tmp_path / "other", fewer, "val")}],
        "best by": [{"metric_for_best_model": "AP50"}],
        "dataloader_drop_last": [{"dataloader_drop_last": True}],
    }
    resumed = {"max_steps": 3, "resume_from_checkpoint": str(finished.folder / "checkpoints" / "checkpoint-2")}
    for key, ways in changes.items():
        for way in ways:
            given = {"model": model, "data": scenes, **resumed, **EVERY_STEP} | way
            with pytest.raises(CheckpointError, match=f"belongs to another run: its {key} is"):
                train(tmp_path / "run", **given)
