import pytest

from builders_reports import record, summary
from qskd.reporting.comparability import notes_about, warnings_about
from qskd.reporting.groups import group_runs

METRICS = summary()["metrics"]
COST = summary()["cost"]
RANDOM = {"weights": "random weights", "configuration": "aabb"}
CHECKPOINT = {"weights": "weights 1a2b", "configuration": "aabb"}


def warnings(*runs):
    return warnings_about(runs, group_runs(runs))


def test_equal_runs_give_no_warning():
    assert (
        warnings(record("a", seed=1), record("b", seed=2), record("c", kind="distill", config={"student": "s"})) == []
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_size": [128]}, "image size: 64 (a); 128 (b)"),
        ({"image_size": [480, 800]}, "image size: 64 (a); 480 to 800 (b)"),
        ({"metrics": METRICS | {"num_images": 7}}, "number of validation images: 6 (a); 7 (b)"),
        ({"metrics": METRICS | {"per_class": {"cat": 0.1}}}, "classes: cat, dog (a); cat (b)"),
        ({"train_images": 17}, "number of training images"),
        ({"steps": 99}, "training steps: 100 (a); 99 (b)"),
        ({"environment": {"torch": "2.14", "platform": "Linux"}}, "versions: torch 2.11 (a); torch 2.14 (b)"),
        ({"validation": "b" * 64}, "validation annotations"),
        ({"cost": COST | {"device": "cuda:0"}}, "Latencies cannot be compared"),
        ({"cost": COST | {"latency_ms": 9.0}}, "the same model took 5.0 ms in a and 9.0 in b"),
        ({"metrics": METRICS | {"AP": None}}, "No AP was measured for b."),
        ({"metrics": {}}, "No AP was measured for b."),
        ({"resumed": True}, "after the interruption: b."),
    ],
)
def test_each_difference_that_spoils_a_comparison_is_told(changes, told):
    found = warnings(record("a", validation="a" * 64), record("b", **({"validation": "a" * 64} | changes)))
    assert len(found) == 1
    assert told in found[0]


def test_unknown_facts_are_not_differences():
    silent = record("b", image_size=None, steps=None, train_images=None, environment={}, cost={})
    assert warnings(record("a", validation="a" * 64), silent) == []


def test_teachers_may_be_trained_in_any_way():
    teacher = record("t", taught="f" * 64, steps=9, image_size=[640], config={"flip": 0.0})
    assert warnings(teacher, record("b"), record("d", kind="distill", config={"student": "s"})) == []


@pytest.mark.parametrize(
    ("distilled", "told"),
    [
        ({"config": {"student": "s", "learning_rate": 1e-3}}, "other options: learning_rate 0.001 against default"),
        ({"config": {"student": "s", "freeze_batch_norm": True}}, "freeze_batch_norm True against default"),
        ({"config": {"student": "s"}, "cost": {"parameters": 2_000_000}}, "another model"),
        ({"config": {}}, "began with weights of its teacher"),
        (
            {"config": {"student": "s"}, "start": CHECKPOINT},
            "began with weights 1a2b and 'baseline' with random weights",
        ),
        (
            {"config": {"student": "s"}, "start": RANDOM | {"configuration": "eeff"}},
            "of different configurations: eeff against aabb",
        ),
    ],
    ids=["options", "norms", "architecture", "teacher's weights", "checkpoint", "configuration"],
)
def test_a_baseline_unlike_the_student_is_told(distilled, told):
    found = warnings(record("b", start=RANDOM), record("d", kind="distill", **distilled))
    assert len(found) == 1
    assert told in found[0]


@pytest.mark.parametrize(
    ("distilled", "baseline"),
    [
        ({"config": {"inherit": False}}, {}),
        ({}, {"kind": "distill", "method": "none"}),
        ({"config": {"student": "s"}, "start": CHECKPOINT}, {"start": CHECKPOINT}),
        ({"config": {"student": "s"}, "start": CHECKPOINT}, {}),  # a run of an older version does not tell
    ],
    ids=["random student", "baseline with the same start", "one checkpoint", "unknown"],
)
def test_the_same_start_is_no_warning(distilled, baseline):
    assert warnings(record("b", **baseline), record("d", kind="distill", **distilled)) == []


def test_notes_say_what_is_missing():
    alone = notes_about(group_runs([record("d", kind="distill")]))
    assert any("no baseline" in note for note in alone)
    assert any("one seed" in note for note in alone)
    others = notes_about(group_runs([record("b", seed=1), *(record(f"d{n}", kind="distill", seed=n) for n in (2, 3))]))
    assert others == ["'qskd' and 'baseline' have no seed in common: their means are compared, not pairs."]
