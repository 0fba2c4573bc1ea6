import json
import math

import pytest

from builders_reports import TEACHER, record
from qskd.errors import ConfigError
from qskd.reporting.compare import compare_runs, teachers_of
from qskd.reporting.records import RunRecord


def trio(**changes):
    return [
        record("base", AP=0.3),
        record("dist", kind="distill", AP=0.35, **changes),
    ]


def test_rows_are_teachers_then_baselines_then_distilled_runs():
    findings = compare_runs(trio()[::-1])
    assert [(row.name, row.role, row.label) for row in findings.rows] == [
        ("teacher", "teacher", "teacher"),
        ("base", "baseline", "baseline"),
        ("dist", "distilled", "qskd"),
    ]
    assert findings.rows[0].parameters == 4_000_000
    # (0.35 - 0.30) / (0.50 - 0.30)
    assert (findings.rows[2].difference, findings.rows[2].gap_closed) == pytest.approx((0.05, 0.25))
    assert findings.rows[1].difference is None


def test_a_gain_is_told_in_one_sentence():
    (gain,) = compare_runs(trio()).gains
    assert gain.sentence() == (
        "qskd: +5.0 AP over baseline (1 paired seed), 25% of the gap to the teacher closed, "
        "with 25% of the teacher's parameters."
    )


def test_a_run_is_compared_with_the_baseline_of_its_own_seed():
    runs = [record(f"b{seed}", seed=seed, AP=ap) for seed, ap in ((1, 0.2), (2, 0.4))]
    runs += [record(f"d{seed}", kind="distill", seed=seed, AP=0.4) for seed in (1, 2, 3)]
    gained = {row.name: row.difference for row in compare_runs(runs).rows if row.role == "distilled"}
    # Seed 3 has no baseline: 0.4 less the baselines' mean, 0.3.
    assert gained == pytest.approx({"d1": 0.2, "d2": 0.0, "d3": 0.1})


def test_the_run_that_made_the_teacher_lends_its_name_and_training_time():
    runs = [record("big", taught=TEACHER["fingerprint"], AP=0.9, train_seconds=77.0), *trio()]
    findings = compare_runs(runs)
    teacher = findings.rows[0]
    assert (teacher.name, teacher.train_seconds) == ("big", 77.0)
    assert teacher.metrics["AP"] == 0.5  # as the distillation measured it, on its data
    assert [row.role for row in findings.rows].count("teacher") == 1


def test_two_teachers_get_a_row_each():
    runs = [*trio(), record("d2", kind="distill", seed=1, teacher=TEACHER | {"fingerprint": "e" * 64})]
    assert list(teachers_of(runs)) == ["teacher 1", "teacher 2"]


def test_a_teacher_nobody_recognises_is_not_taken_for_a_run_of_that_name():
    runs = [record("teacher"), record("student", kind="distill")]
    assert list(teachers_of(runs)) == ["teacher of student"]


def test_classes_have_teacher_means_and_gains():
    findings = compare_runs(trio())
    cat, dog = findings.classes
    assert (cat.name, cat.teacher) == ("cat", 0.6)
    assert cat.groups == pytest.approx((0.3, 0.35))
    assert cat.gains == pytest.approx((0.05,))
    assert (dog.groups, dog.gains) == ((None, None), (None,))


def test_one_run_alone_is_reported():
    findings = compare_runs([record("only")])
    assert [row.name for row in findings.rows] == ["only"]
    assert findings.gains == ()
    assert not findings.has_seeds


def test_the_text_holds_table_gains_warnings_and_notes():
    text = compare_runs(trio(steps=7)).text()
    assert "dist" in text.splitlines()[4]
    assert "qskd: +5.0 AP" in text
    assert "warning: The runs differ in training steps" in text
    assert "one seed" in text


def test_everything_fits_into_strict_json():
    runs = [record("a", AP=math.nan, cost={"gflops": math.inf}), *trio()]
    content = json.loads(json.dumps(compare_runs(runs).as_dict(), allow_nan=False))
    row = next(row for row in content["rows"] if row["name"] == "a")
    assert (row["metrics"]["AP"], row["gflops"]) == (None, None)
    assert content["gains"][0]["metrics"]["AP"]["mean"] == pytest.approx(0.05)


@pytest.mark.parametrize("kind", [None, "evaluation"])
def test_a_summary_of_something_else_is_refused(kind):
    with pytest.raises(ConfigError, match="'x' has kind"):
        RunRecord.from_summary("x", {"kind": kind})


def test_a_summary_with_only_a_kind_is_enough():
    found = RunRecord.from_summary("x", {"kind": "train"})
    assert (found.role, found.metrics, found.image_size, found.seed) == ("baseline", {}, (), None)
    assert compare_runs([found]).rows[0].name == "x"
