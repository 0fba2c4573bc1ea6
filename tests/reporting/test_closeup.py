import json

import numpy as np
import pytest

from builders_detections import random_scene, without_ties
from builders_reports import TEACHER, closeup_of, record
from qskd.evaluation.matching import Truth, match
from qskd.evaluation.resampling import average_precision
from qskd.reporting.closeup import CURVES, Shown, extremes_of, model_closeups
from qskd.reporting.compare import compare_runs
from qskd.reporting.groups import group_runs
from qskd.reporting.intervals import contrasts_of, sample_all, scores_of


def tables(seed, hide=0.0):
    """Matches of a model on always the same objects; ``hide`` leaves out that share of its detections."""
    truth, found = random_scene(11, 8, 2, 12)
    rng = np.random.default_rng(seed)
    chosen = [rng.random(len(one.scores)) >= hide for one in found]
    found = [
        one._make(column[keep] for column in one) for one, keep in zip(without_ties(found, seed), chosen, strict=True)
    ]
    return match(Truth.of(truth), dict(zip((image["id"] for image in truth["images"]), found, strict=True)))


RUNS = [
    *(record(f"b{seed}", seed=seed) for seed in (1, 2, 9)),
    *(record(f"d{seed}", seed=seed, kind="distill") for seed in (1, 2, 7)),
]
MATCHES = {run.name: tables(at, hide=0.5 if run.name[0] == "b" else 0.1) for at, run in enumerate(RUNS)}
MATCHES["teacher"] = tables(99)


def ap(name):
    return np.nanmean(average_precision(MATCHES[name], np.ones((1, 8), dtype=np.int32)))


def test_a_groups_score_is_the_mean_over_its_seeds():
    found = {one.label: one.values["AP"] for one in scores_of(group_runs(RUNS), ["teacher"], sample_all(MATCHES, 20))}
    assert list(found) == ["teacher", "baseline", "qskd"]
    assert found["teacher"].value == pytest.approx(ap("teacher"))
    assert found["qskd"].value == pytest.approx(np.mean([ap("d1"), ap("d2"), ap("d7")]))
    assert all(one.low < one.high for one in found.values())


def test_differences_are_taken_seed_by_seed_and_draw_by_draw():
    sampled = sample_all(MATCHES, 40)
    names = {TEACHER["fingerprint"]: "teacher"}
    baseline, teacher = contrasts_of(group_runs(RUNS), names, sampled)
    assert (baseline.kind, baseline.against, teacher.kind, teacher.against) == (
        "baseline",
        "baseline",
        "teacher",
        "teacher",
    )
    # Seeds 1 and 2 are common.
    assert baseline.values["AP"].value == pytest.approx((ap("d1") + ap("d2") - ap("b1") - ap("b2")) / 2)
    assert teacher.values["AP"].value == pytest.approx(np.mean([ap("d1"), ap("d2"), ap("d7")]) - ap("teacher"))
    draws = sum(sampled[name].values[1:, 0] * sign / 2 for name, sign in (("d1", 1), ("d2", 1), ("b1", -1), ("b2", -1)))
    limits = baseline.values["AP"]
    assert (limits.low, limits.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert limits.is_clear == (limits.low > 0 or limits.high < 0)


def test_a_model_against_itself_differs_by_nothing():
    runs = [record("b"), record("d", kind="distill")]
    same = {"b": MATCHES["b1"], "d": MATCHES["b1"]}
    (found,) = contrasts_of(group_runs(runs), {}, sample_all(same, 10))
    assert {(one.value, one.low, one.high) for one in found.values.values()} == {(0.0, 0.0, 0.0)}
    assert not found.values["AP"].is_clear


def test_runs_without_detections_are_left_out():
    some = {name: one for name, one in MATCHES.items() if name in ("b1", "d7")}
    sampled = sample_all(some, 5)
    groups = group_runs(RUNS)
    assert [one.label for one in scores_of(groups, ["teacher"], sampled)] == ["baseline", "qskd"]
    (found,) = contrasts_of(groups, {TEACHER["fingerprint"]: "teacher"}, sampled)
    assert found.values["AP"].value == pytest.approx(ap("d7") - ap("b1"))  # no common seed among those known
    assert contrasts_of(groups, {}, {}) == ()


def test_curves_have_ap_as_their_mean():
    (found,) = model_closeups([Shown("t", "t", "teacher", "teacher")], MATCHES)
    table = average_precision(MATCHES["teacher"], np.ones((1, 8), dtype=np.int32))[0]
    for iou, at in CURVES.items():
        assert np.mean(found.curves[iou][""]) == pytest.approx(np.nanmean(table[at]))
        assert np.mean(found.curves[iou]["class 0"]) == pytest.approx(table[at, 0])


def test_images_are_ordered_by_what_is_gained():
    groups = group_runs([record("b1"), record("d1", kind="distill")])
    shown = [Shown("base", "baseline", "b1", "baseline"), Shown("dist", "qskd", "d1", "distilled")]
    names = {id_: f"{id_}.png" for id_ in MATCHES["b1"].truth.image_ids}
    (found,) = extremes_of(groups, shown, MATCHES, names, 8)
    gains = [one.after - one.before for one in found.best]
    losses = [one.after - one.before for one in found.worst]
    assert gains == sorted(gains, reverse=True)
    assert losses == sorted(losses)
    assert (len(gains), len(losses)) == (found.better, found.worse)
    assert all(one.file_name == f"{one.image_id}.png" for one in (*found.best, *found.worst))
    assert min(gains) > 0 > max(losses, default=-1)


def test_the_interval_is_told_in_words_and_in_json():
    runs = [record("b1"), record("d1", kind="distill")]
    findings = compare_runs(runs, closeup=closeup_of(runs, {"b1": MATCHES["b1"], "d1": MATCHES["d1"]}))
    limits = findings.closeup.contrasts[0].values["AP"]
    told = findings.certainty(findings.gains[0])
    assert f"{100 * limits.low:+.1f} to {100 * limits.high:+.1f}" in told
    assert ("0 is outside" in told) == limits.is_clear
    assert told in findings.text()
    content = json.loads(json.dumps(findings.as_dict(), allow_nan=False))
    assert content["closeup"]["contrasts"][0]["values"]["AP"]["low"] == limits.low
    assert len(content["closeup"]["models"][0]["curves"]["0.5"]["class 1"]) == 101


def test_without_detections_nothing_is_said_of_intervals():
    findings = compare_runs([record("b"), record("d", kind="distill")])
    assert findings.certainty(findings.gains[0]) == ""
