import math

import pytest

from builders_reports import record
from qskd.reporting.groups import Difference, difference, gap_closed, group_runs, metric, reference_of

AP = metric("AP")
START = {"weights": "random weights", "configuration": "aabb"}


def runs(aps, **changes):
    return [record(f"{changes.get('kind', 'train')}{seed}", seed=seed, AP=ap, **changes) for seed, ap in aps.items()]


def two_groups(baseline, distilled):
    groups = group_runs([*runs(distilled, kind="distill"), *runs(baseline)])
    assert [group.role for group in groups] == ["baseline", "distilled"]
    return groups[1], groups[0]


def test_seeds_in_common_are_compared_pair_by_pair():
    found = difference(*two_groups({1: 0.30, 2: 0.40, 9: 0.99}, {1: 0.35, 2: 0.41, 7: 0.01}), AP)
    # Differences 0.05 and 0.01: mean 0.03, sd sqrt(2 * 0.02^2 / 1) = 0.028284, / sqrt(2) = 0.02.
    assert found.paired
    assert found.n == 2
    assert (found.mean, found.error, found.baseline) == pytest.approx((0.03, 0.02, 0.35))


def test_without_common_seeds_the_means_are_compared():
    found = difference(*two_groups({1: 0.30, 2: 0.40}, {3: 0.50, 4: 0.52}), AP)
    # sd^2: 0.005 and 0.0002, of two runs each: sqrt(0.0025 + 0.0001) = 0.0509902.
    assert not found.paired
    assert found.n == 2
    assert (found.mean, found.error, found.baseline) == pytest.approx((0.16, 0.0509902, 0.35))


def test_one_pair_has_no_error():
    found = difference(*two_groups({1: 0.30}, {1: 0.25}), AP)
    assert found.mean == pytest.approx(-0.05)
    assert found.error is None


@pytest.mark.parametrize("undefined", [None, math.nan])
def test_undefined_metrics_give_no_difference(undefined):
    found = difference(*two_groups({1: 0.3}, {1: undefined}), AP)
    assert (found.mean, found.error, found.n) == (None, None, 0)


def test_a_seed_run_twice_counts_once():
    group, reference = two_groups({1: 0.30, 2: 0.30}, {1: 0.40, 2: 0.30})
    twice = group_runs([*group.runs, record("again", kind="distill", seed=1, AP=0.20)])[0]
    # Seed 1: (0.40 + 0.20) / 2 - 0.30 = 0, seed 2: 0.
    assert difference(twice, reference, AP).mean == pytest.approx(0.0)
    assert difference(twice, reference, AP).n == 2


def test_estimate_is_mean_and_sample_deviation():
    group, _ = two_groups({1: 0.3}, {1: 0.1, 2: 0.2, 3: 0.6})
    found = group.estimate(AP)
    # Deviations -0.2, -0.1, 0.3: sqrt(0.14 / 2).
    assert (found.mean, found.error, found.n) == pytest.approx((0.3, math.sqrt(0.07), 3))


@pytest.mark.parametrize(
    ("gain", "baseline", "teacher", "closed"),
    [
        (0.05, 0.30, 0.50, 0.25),
        (-0.05, 0.30, 0.50, -0.25),
        (0.30, 0.30, 0.50, 1.5),
        (0.05, 0.30, 0.30, None),
        (0.05, 0.30, 0.20, None),
        (0.05, 0.30, None, None),
        (None, 0.30, 0.50, None),
    ],
)
def test_the_gap_closed_needs_a_teacher_above_the_baseline(gain, baseline, teacher, closed):
    found = gap_closed(Difference(gain, None, 1, True, baseline), teacher)
    assert found == (None if closed is None else pytest.approx(closed))


def test_runs_that_differ_in_more_than_their_seed_are_groups_of_their_own():
    groups = group_runs(
        [
            record("a", seed=2, config={"output_dir": "a", "learning_rate": 1e-3, "data": "x"}),
            record("b", seed=1, config={"output_dir": "b", "learning_rate": 1e-3, "data": "y", "logging_steps": 7}),
            record("c", seed=1, config={"output_dir": "c"}),
            record("d", kind="distill", config={"method": "qskd"}),
            record("e", kind="distill", config={"method": "qskd", "lapd_weight": 2.0}),
            record("f", kind="distill", method="features"),
            record("t", taught="f" * 64),
        ]
    )
    assert {group.label: [run.name for run in group.runs] for group in groups} == {
        "baseline, learning_rate 0.001": ["b", "a"],
        "baseline, learning_rate default": ["c"],
        "qskd, lapd_weight default": ["d"],
        "qskd, lapd_weight 2.0": ["e"],
        "features": ["f"],
    }


def test_runs_that_began_differently_are_groups_of_their_own():
    groups = group_runs(
        [
            record("a", seed=1, start=START),
            record("b", seed=2, start=START),
            record("c", seed=3, start={"weights": "weights 1a2b", "configuration": "aabb"}),
            record("d", seed=4),  # of an older version
            record("e", kind="distill", start=START),
            record("f", kind="distill", start=START | {"configuration": "eeff"}),
        ]
    )
    assert {group.label: [run.name for run in group.runs] for group in groups} == {
        "baseline, from random weights": ["a", "b"],
        "baseline, from weights 1a2b": ["c"],
        "baseline, from unknown weights": ["d"],
        "qskd, configuration aabb": ["e"],
        "qskd, configuration eeff": ["f"],
    }


def test_architectures_are_told_apart_in_labels():
    small, large = record("a"), record("b", cost={"parameters": 2_500_000})
    assert [group.label for group in group_runs([small, large])] == [
        "baseline, rt_detr 1.00 M",
        "baseline, rt_detr 2.50 M",
    ]


def test_a_distillation_without_terms_is_a_baseline():
    groups = group_runs([record("a", kind="distill", method="none"), record("b")])
    assert [(group.role, group.label) for group in groups] == [
        ("baseline", "baseline, distilled without terms"),
        ("baseline", "baseline, plain"),
    ]


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ({"other": {"cost": {"parameters": 7}}, "same": {}}, "same"),
        ({"other": {"kind": "distill", "method": "none", "start": {"weights": "w"}}, "same": {"start": START}}, "same"),
        ({"plain": {}, "control": {"kind": "distill", "method": "none"}}, "control"),
        ({"seed5": {"seed": 5}, "seed0": {"seed": 0, "config": {"flip": 0.1}}}, "seed0"),
        ({"far": {"config": {"flip": 0.1, "crop": 0.1}}, "near": {"config": {"flip": 0.1}}}, "near"),
        ({}, None),
    ],
    ids=["architecture", "start", "unknown start", "seeds", "options", "none"],
)
def test_a_distilled_group_is_measured_by_the_baseline_most_like_it(candidates, chosen):
    baselines = [record(name, **changes) for name, changes in candidates.items()]
    groups = group_runs([*baselines, record("d", kind="distill", start=START)])
    found = reference_of(groups[-1], groups)
    assert (found and found.first.name) == chosen
