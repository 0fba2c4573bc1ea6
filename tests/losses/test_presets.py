from dataclasses import replace

import pytest
import torch

from builders_views import Facts, lesson_of, random_targets, random_view, run_term
from qskd.errors import ConfigError, UnsupportedNeed
from qskd.losses.attention_guided_feature import AttentionGuidedFeature, UnmaskedFeature
from qskd.losses.local_alignment_prediction import LocalAlignmentPrediction
from qskd.losses.presets import PRESETS, MethodSettings, build_terms, option_names, resolve
from qskd.models.adapter import Need

TERMS_OF_PRESETS = {
    "qskd": {"lapd": 1.0, "agfd": 5.0},
    "qskd_tprd": {"lapd": 1.0, "agfd": 100.0},
    "none": {},
    "positives": {"lapd": 1.0, "agfd": 5.0},
    "all_queries": {"lapd": 1.0, "agfd": 5.0},
    "index_aligned": {"lapd": 1.0, "agfd": 5.0},
    "features": {"agfd": 5.0},
    "predictions": {"lapd": 1.0},
    "unmasked_features": {"lapd": 1.0, "feature": 5.0},
}


def test_presets_hold_these_terms_with_these_weights() -> None:
    found = {
        name: {term: weight for term, (_, weight) in build_terms(settings, student=Facts(), teacher=Facts()).items()}
        for name, settings in PRESETS.items()
    }
    assert found == TERMS_OF_PRESETS


def test_the_third_party_form_is_uncapped_imagewide_and_one_mean() -> None:
    settings = resolve("qskd_tprd")
    assert (settings.selection.cap, settings.selection.max_hard_negatives, settings.selection.threshold) == (
        None,
        None,
        0,
    )
    assert (settings.lapd.scope, settings.lapd.top_up, settings.lapd.single_mean) == ("image", False, True)
    assert (settings.lapd.class_weight, settings.lapd.box_weight, settings.lapd.giou_weight) == (1.0, 5.0, 2.0)
    assert (settings.agfd.norm, settings.agfd.normalise, settings.agfd.mask) == ("area", False, "attention")
    assert settings.agfd.power == 2.0


@pytest.mark.parametrize(
    "overrides",
    [
        {"selection.cap": 5, "agfd.weight": 20, "lapd.scope": "image"},
        {"selection": {"cap": 5}, "agfd": {"weight": 20.0}, "lapd": {"scope": "image"}},
        {"selection": {"cap": 5}, "agfd.weight": 20.0, "lapd.scope": "image"},
    ],
    ids=["dotted", "nested", "mixed"],
)
def test_options_can_be_changed_by_name(overrides: dict) -> None:
    base = PRESETS["qskd"]
    expected = MethodSettings(
        selection=replace(base.selection, cap=5),
        agfd=replace(base.agfd, weight=20.0),
        lapd=replace(base.lapd, scope="image"),
    )
    settings = resolve("qskd", overrides)
    assert settings == expected
    assert isinstance(settings.agfd.weight, float)
    assert PRESETS["qskd"] == base


def test_limits_can_be_lifted_with_none() -> None:
    assert resolve("qskd", {"selection.cap": None}).selection.cap is None


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("qskdd", {}, "no method 'qskdd'. Methods: qskd, qskd_tprd"),
        ("qskd", {"agdf.weight": 1}, "no option 'agdf'.*agfd.weight"),
        ("qskd", {"agfd.wieght": 1}, "no option 'agfd.wieght'.*agfd.weight"),
        ("qskd", {"agfd": 3}, "'agfd' holds options by name"),
        ("qskd", {"agfd.weight": "5"}, "'agfd.weight' is '5'; expected float"),
        ("qskd", {"agfd.norm": "max"}, "expected 'mass' or 'area'"),
        ("qskd", {"agfd.normalise": 1}, "'agfd.normalise' is 1; expected bool"),
        ("qskd", {"selection.cap": 1.5}, "expected int or None"),
        ("qskd", {"selection.cap": True}, "expected int or None"),
        ("qskd", {"selection.threshold": 3}, "selection.threshold is 3.0"),
        ("qskd", {"lapd.weight": -1}, "lapd.weight is -1.0; it must be finite, and 0 or more"),
        ("qskd", {"lapd.hard_negative_box_weight": float("nan")}, "lapd.hard_negative_box_weight is nan"),
        ("qskd", {"agfd.weight": float("inf")}, "agfd.weight is inf; it must be finite"),
    ],
)
def test_what_does_not_exist_or_fit_is_refused_with_what_does(name: str, overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(name, overrides)


def test_every_option_has_a_name() -> None:
    names = option_names()
    assert {"selection.cap", "lapd.weight", "agfd.mask"} <= set(names)
    for name in names:
        room, option = name.split(".")
        value = getattr(getattr(PRESETS["qskd"], room), option)
        assert resolve("qskd", {name: value}) == PRESETS["qskd"]


@pytest.mark.parametrize("name", PRESETS)
def test_boxes_of_hard_negatives_are_learnt_where_a_method_is_to_imitate_all(name: str) -> None:
    expected = 1.0 if name in ("qskd_tprd", "all_queries", "index_aligned") else 0.0
    assert resolve(name).lapd.hard_negative_box_weight == expected


def test_a_weight_of_zero_switches_a_term_off() -> None:
    settings = resolve("qskd", {"lapd.weight": 0, "agfd.mask": "none"})
    ((term, weight),) = build_terms(settings, student=Facts(), teacher=Facts()).values()
    assert type(term) is UnmaskedFeature
    assert weight == 5.0


def test_options_reach_the_terms() -> None:
    overrides = {
        "lapd.hard_negative_weight": 0.5,
        "lapd.hard_negative_box_weight": 0.25,
        "lapd.layers": "last",
        "selection.cap": 3,
        "agfd.norm": "area",
        "agfd.normalise": False,
    }
    terms = build_terms(resolve("qskd", overrides), student=Facts(num_layers=4), teacher=Facts(memory_channels=(9,)))
    lapd, agfd = terms["lapd"][0], terms["agfd"][0]
    assert isinstance(lapd, LocalAlignmentPrediction)
    assert isinstance(agfd, AttentionGuidedFeature)
    assert (lapd.hard_negative_weight, lapd.hard_negative_box_weight) == (0.5, 0.25)
    assert (lapd.num_layers, lapd.selection.cap) == (1, 3)
    assert (agfd.norm, agfd.normalise, tuple(agfd.projections[0].weight.shape)) == ("area", False, (9, 6))


@pytest.mark.parametrize(
    ("missing", "side", "message"),
    [
        (Need.ATTENTION, "teacher", "'agfd' needs cross-attention of the teacher, which the imaginary adapter"),
        (Need.MEMORY, "student", "'agfd' needs encoder memory of the student.*--agfd_weight 0"),
        (Need.PREDICTIONS, "student", "'lapd' needs all decoder layers' predictions of the student"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_need_no_adapter_meets_is_named(missing: Need, side: str, message: str) -> None:
    facts = {"student": Facts(), "teacher": Facts(), side: Facts(provides=frozenset(Need) - {missing})}
    with pytest.raises(UnsupportedNeed, match=message):
        build_terms(resolve("qskd"), **facts)


def test_a_student_need_not_show_its_attention() -> None:
    student = Facts(provides=frozenset({Need.MEMORY, Need.PREDICTIONS}))
    assert build_terms(resolve("qskd"), student=student, teacher=Facts())


def test_all_queries_teaches_with_more_queries_than_groups_do() -> None:
    student, teacher, targets = random_view(1), random_view(2), random_targets()
    sought = {}
    for name in ("positives", "qskd", "all_queries"):
        settings = resolve(name, {"agfd.weight": 0})
        ((term, _),) = build_terms(settings, student=Facts(), teacher=Facts()).values()
        _, prepared = run_term(term, student, lesson_of(teacher, targets, settings.selection))
        sought[name] = prepared.amount.sum().item()
    assert sought["positives"] < sought["qskd"] < sought["all_queries"]
    # 2 layers, 3 + 2 positives, and every other of 2 x 12 queries.
    assert sought["all_queries"] == 2 * (2 * 12)
    assert torch.tensor(list(sought.values())).isfinite().all()
