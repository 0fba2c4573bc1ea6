"""Reports of runs that kept their detections, and of older ones that did not."""

import json
import shutil

import numpy as np
import pytest

from builders_reports import panel_titles, write_run
from qskd.data.sources import open_source
from qskd.data.synthetic import draw_dataset
from qskd.evaluation.coco_map import EvaluatorState
from qskd.evaluation.detections import Detections
from qskd.evaluation.kept import as_evaluated
from qskd.runs.comparing import compare


def keep(run, index, found, *, teacher=False):
    """Write detections as a finished run does."""
    state = EvaluatorState(
        np.array([image.id for image in index.images]),
        np.array([len(one.scores) for one in found]),
        np.concatenate([np.column_stack([one.scores, one.labels, one.boxes]) for one in found]).astype(np.float32),
    )
    kept = as_evaluated(index.ground_truth(), index.class_names, state)
    kept.save(run / "eval" / ("teacher_detections.npz" if teacher else "val_detections.npz"))


@pytest.fixture
def kept(tmp_path, scenes):
    """Two runs that kept what they found: the baseline half of the objects, the distilled model and teacher all."""
    index = open_source(scenes).load("val")
    every = [
        Detections(np.linspace(0.9, 0.8, len(index.labels(at))), index.labels(at), index.boxes(at))
        for at in range(len(index))
    ]
    half = [Detections(*(column[::2] for column in one)) for one in every]
    data = {"data": str(scenes)}
    base = write_run(tmp_path / "base", config=data)
    student = write_run(tmp_path / "dist", kind="distill", config=data)
    keep(base, index, half)
    keep(student, index, every)
    keep(student, index, every, teacher=True)
    return base, student, index


def test_kept_detections_need_no_models(kept, tmp_path):
    base, student, index = kept
    made = compare([base, student], tmp_path / "out", images=2, latency=False)
    look = made.findings.closeup
    scores = {one.label: one.values["AP50"].value for one in look.scores}
    # Crowds aside, every object is found once by the teacher and the distilled model.
    assert scores["teacher"] == scores["qskd"] == pytest.approx(1.0)
    assert scores["baseline"] < 0.8
    gained = look.contrast("qskd", "baseline").values["AP50"]
    assert gained.value == pytest.approx(1.0 - scores["baseline"])
    assert 0 < gained.low <= gained.value <= gained.high
    assert look.contrast("qskd", "teacher").values["AP"].value == 0.0
    assert {one.label: one.errors.counts["missed"] for one in look.models} == {
        "teacher": 0,
        "baseline": sum(len(index.labels(at)) // 2 for at in range(len(index))),
        "qskd": 0,
    }
    assert not [note for note in look.notes if "No detections" in note or "Asked again" in note]
    assert panel_titles(made.html) == ["ground truth", "teacher", "baseline", "qskd"]


def test_the_best_images_are_those_with_the_largest_gain(kept, tmp_path):
    base, student, index = kept
    made = compare([base, student], tmp_path / "out", images=4, latency=False)
    (found,) = made.findings.closeup.extremes
    # Of n objects the baseline finds half, rounded up: its F1 is 2 h / (h + n); the distilled model's is 1.
    counts = [len(index.labels(at)) for at in range(len(index))]
    wanted = sorted((1 - 2 * ((n + 1) // 2) / ((n + 1) // 2 + n) if n else 0.0 for n in counts), reverse=True)
    assert [one.after - one.before for one in found.best] == pytest.approx(wanted[:2])
    assert (found.better, found.worse, found.worst) == (sum(value > 0 for value in wanted), 0, ())
    text = made.html.read_text("utf-8")
    assert "Where qskd gains most" in text
    assert "loses most" not in text
    assert text.count("<img") == 4 * (2 + min(4, sum(n > 0 for n in counts)))


def test_detections_of_other_images_are_not_taken(kept, tmp_path, tiny_folders):
    base, student, _ = kept
    renamed = tmp_path / "renamed"
    draw_dataset(renamed, train=1, val=7, size=64, seed=5)
    shutil.copytree(tiny_folders["rt_detr_student"], base / "best")
    made = compare([base, student], tmp_path / "out", data=renamed, images=0, latency=False)
    look = made.findings.closeup
    assert [one.label for one in look.models] == ["baseline"]
    assert any("Asked again" in note and "base" in note for note in look.notes)
    assert any("No detections of qskd" in note for note in look.notes)


def test_damaged_detections_are_told_and_the_model_is_asked(kept, tmp_path, tiny_folders):
    base, _, _ = kept
    (base / "eval" / "val_detections.npz").write_bytes(b"no")
    shutil.copytree(tiny_folders["rt_detr_student"], base / "best")
    look = compare([base], tmp_path / "out", images=0, latency=False).findings.closeup
    assert [one.label for one in look.models] == ["baseline"]
    assert any("the file is damaged" in note for note in look.notes)


def test_a_summary_that_does_not_fit_the_detections_is_told(kept, tmp_path):
    notes = compare(kept[:1], tmp_path / "out", images=0, latency=False).findings.closeup.notes
    assert any("its summary says 30.0" in note for note in notes)


def test_old_runs_without_data_leave_the_closer_look_out(tmp_path):
    made = compare([write_run(tmp_path / "a"), write_run(tmp_path / "b", kind="distill")], tmp_path / "out")
    text = made.html.read_text("utf-8")
    assert "Nothing is said about single detections" in text
    assert "Kinds of mistakes" not in text
    assert "AP by class" in text
    assert json.loads(made.json.read_text())["closeup"]["models"] == []
