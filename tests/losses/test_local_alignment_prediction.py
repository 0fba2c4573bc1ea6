import math
from dataclasses import replace

import pytest
import torch

import reference_criterion as reference
from builders_views import (
    answer_of,
    costs_for,
    lesson_of,
    random_targets,
    random_view,
    run_term,
    with_gradient,
)
from qskd.data.batch import Targets
from qskd.errors import ConfigError
from qskd.losses.local_alignment_prediction import LocalAlignmentPrediction, flat_rows, listed
from qskd.losses.term import Lesson, StudentAnswer
from qskd.models import host
from qskd.models.view import DetrView
from qskd.selection.groups import GroupQuerySelection, QueryGroups

DOUBLE = {"dtype": torch.float64}


def term_for(student: DetrView, **options: object) -> LocalAlignmentPrediction:
    return LocalAlignmentPrediction(
        num_student_layers=student.num_layers,
        num_student_queries=student.num_queries,
        **options,  # type: ignore[arg-type]
    )


CASES = {
    "default": ({}, {}, {}),
    "image": ({"scope": "image"}, {}, {}),
    "hard-boxes": ({"hard_negative_box_weight": 0.3, "hard_negative_weight": 2.0}, {}, {}),
    "tprd": (
        {"scope": "image", "top_up": False, "single_mean": True, "hard_negative_box_weight": 1.0},
        {},
        {"cap": None, "most": None},
    ),
    "one-mean": ({"single_mean": True, "hard_negative_box_weight": 0.3}, {}, {}),
    "index": ({"scope": "index", "hard_negative_box_weight": 1.0}, {}, {"mode": "all"}),
    "index-selected": ({"scope": "index"}, {"student": True, "teacher": False}, {}),
    "no-top-up": ({"top_up": False}, {}, {}),
    "uncapped": ({}, {}, {"cap": None, "most": None, "threshold": -0.3}),
    "small-cap": ({}, {}, {"cap": 2, "threshold": -0.3}),
    "most": ({}, {}, {"most": 3}),
    "by-giou": ({"weight_by_giou": True, "hard_negative_weight": 0.5, "hard_negative_box_weight": 1.0}, {}, {}),
    "agreement": ({}, {}, {"agreement": 0.25}),
    "all": ({"hard_negative_box_weight": 1.0}, {}, {"mode": "all"}),
    "positives": ({}, {}, {"mode": "positives"}),
    "softmax": ({}, {"student": True, "teacher": True}, {}),
    "to-softmax": ({}, {"student": True, "teacher": False}, {}),
    "to-sigmoid": ({}, {"student": False, "teacher": True}, {"cap": 3}),
}
RENAMED = {"most": "max_hard_negatives", "agreement": "class_agreement", "mode": "select"}


@pytest.mark.parametrize(("options", "softmax", "settings"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("known", [[True] * 5, [True, False, True, True, False]], ids=["known", "unknown"])
def test_value_and_gradient_equal_the_formula_pair_by_pair(
    options: dict, softmax: dict, settings: dict, known: list[bool]
) -> None:
    student = with_gradient(random_view(1, queries=11, images=3, softmax=softmax.get("student", False), **DOUBLE))
    teacher = random_view(2, queries=16, images=3, softmax=softmax.get("teacher", False), **DOUBLE)
    targets = random_targets((3, 0, 2))
    selection = GroupQuerySelection(**{RENAMED.get(name, name): value for name, value in settings.items()})
    term = term_for(student, selection=selection, **options)
    parts, _ = run_term(term, student, lesson_of(teacher, targets, selection, known))
    again = {
        "hard_negative_weight": "hard_weight",
        "hard_negative_box_weight": "hard_box_weight",
        "weight_by_giou": "by_giou",
    }
    expected = reference.lapd(
        student,
        teacher,
        targets,
        costs_for(student),
        costs_for(teacher),
        known=known,
        selection=settings,
        **{again.get(name, name): value for name, value in options.items()},
    )
    leaves = [student.logits, student.boxes, *([] if student.no_object is None else [student.no_object])]
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-7), name
        got = torch.autograd.grad(parts[name], leaves, retain_graph=True, allow_unused=True)
        wanted = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        for one, other, leaf in zip(got, wanted, leaves, strict=True):
            zeros = torch.zeros_like(leaf)
            torch.testing.assert_close(
                zeros if one is None else one, zeros if other is None else other, rtol=1e-5, atol=1e-7
            )


@pytest.mark.parametrize(
    ("student_layers", "teacher_layers", "expected"),
    [
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (3, 6, [1, 3, 5]),
        (2, 3, [1, 2]),  # round(1.5) is 2, upwards
        (6, 3, [0, 0, 1, 1, 2, 2]),  # 0.5 1 1.5 2 2.5 3
        (6, 1, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_each_student_layer_has_its_teacher_layer(
    student_layers: int, teacher_layers: int, expected: list[int]
) -> None:
    term = LocalAlignmentPrediction(num_student_layers=student_layers, num_student_queries=3)
    assert term.teacher_layers(teacher_layers) == expected


@pytest.mark.parametrize(("ours", "theirs"), [(2, 3), (3, 2), (1, 4)])
def test_depths_may_differ(ours: int, theirs: int) -> None:
    student, teacher = random_view(1, layers=ours, **DOUBLE), random_view(2, layers=theirs, **DOUBLE)
    targets = random_targets()
    parts, _ = run_term(term_for(student), student, lesson_of(teacher, targets))
    costs = costs_for(student)
    expected = reference.lapd(student, teacher, targets, costs, costs)
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_the_last_layer_alone_learns_from_the_teachers_last() -> None:
    student, teacher = random_view(1, layers=3), random_view(2, layers=4)
    lesson = lesson_of(teacher, random_targets())
    parts, prepared = run_term(term_for(student, layers="last"), student, lesson)
    ours = replace(student, logits=student.logits[-1:], boxes=student.boxes[-1:])
    groups = lesson.groups
    theirs = Lesson(
        replace(teacher, logits=teacher.logits[-1:], boxes=teacher.boxes[-1:]),
        QueryGroups(groups.role[-1:], groups.owner[-1:], groups.giou[-1:], groups.match[-1:]),
        lesson.targets,
        lesson.known_classes,
    )
    expected, _ = run_term(term_for(ours), ours, theirs)
    assert prepared.amount.shape == (2,)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}
    )


LEFT, WHOLE, WIDE, FAR = [0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0], [0.375, 0.5, 0.75, 1.0], [0.95, 0.5, 0.1, 0.1]


def hand_view(boxes: list[list[float]], logits: list[float]) -> DetrView:
    view = random_view(layers=1, images=1, queries=len(boxes), classes=1)
    return replace(view, boxes=torch.tensor(boxes)[None, None], logits=torch.tensor(logits).view(1, 1, -1, 1))


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
def test_one_positive_and_one_hard_negative_by_hand(beta: float) -> None:
    # Object: the left half. Teacher: query 0 is the object, 1 the whole image (GIoU 1/2). Student: query 2 is
    # matched, query 0 is far away (easy), query 1 three quarters (GIoU 2/3): the only candidate.
    # Positives: KL(sigmoid(log 3) = 3/4 || 1/2); boxes equal.
    # Hard negatives: KL 0 (logits equal); |0.375 - 0.5| + |0.75 - 1| = 3/8; IoU = GIoU = 3/4.
    teacher = hand_view([LEFT, WHOLE], [math.log(3), 0.0])
    student = hand_view([FAR, WIDE, LEFT], [0.0, 0.0, 0.0])
    targets = Targets.from_lists([torch.tensor([0])], [torch.tensor([LEFT])])
    groups = GroupQuerySelection().group(teacher, targets, torch.tensor([[[0]]]))
    lesson = Lesson(teacher, groups, targets, torch.tensor([True]))
    term = term_for(student, hard_negative_weight=3.0, hard_negative_box_weight=beta)
    prepared = term.prepare(lesson)
    parts = term(StudentAnswer(student, torch.tensor([[[2]]])), lesson, prepared, prepared.amount)
    assert prepared.amount.tolist() == [1.0, 1.0]
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert parts["lapd_class"].item() == pytest.approx(kl, abs=1e-6)
    assert parts["lapd_box"].item() == pytest.approx(beta * 3 * 5 * 3 / 8, abs=1e-5)
    assert parts["lapd_giou"].item() == pytest.approx(beta * 3 * 2 * (1 - 3 / 4), abs=1e-5)


def test_a_threshold_of_one_leaves_the_positives() -> None:
    student, teacher, targets = random_view(1), random_view(2), random_targets()
    high, none = GroupQuerySelection(threshold=1.0), GroupQuerySelection(select="positives")
    parts, prepared = run_term(term_for(student, selection=high), student, lesson_of(teacher, targets, high))
    expected, _ = run_term(term_for(student, selection=none), student, lesson_of(teacher, targets, none))
    assert prepared.amount.tolist() == [5.0, 5.0, 0.0, 0.0]
    assert parts == expected
    assert parts["lapd_box"] > 0


def test_hard_negatives_add_something_to_the_positives() -> None:
    student, lesson = random_view(1), lesson_of(random_view(2), random_targets())
    with_hard, prepared = run_term(term_for(student), student, lesson)
    with_boxes, _ = run_term(term_for(student, hard_negative_box_weight=1.0), student, lesson)
    without, _ = run_term(term_for(student, hard_negative_weight=0.0), student, lesson)
    assert (prepared.amount[2:] > 0).all()
    assert with_hard["lapd_class"] > without["lapd_class"]
    assert with_hard["lapd_box"] == without["lapd_box"]
    assert with_boxes["lapd_box"] > without["lapd_box"]


def test_no_more_pairs_are_sought_than_the_student_has_queries() -> None:
    # 4 queries for 3 and 6 objects: 3 and 4 positives, 1 and 0 queries left for hard negatives.
    student, teacher = random_view(1, queries=4), random_view(2, queries=30)
    selection = GroupQuerySelection(threshold=-1.0)
    _, prepared = run_term(term_for(student), student, lesson_of(teacher, random_targets((3, 6)), selection))
    assert prepared.amount.tolist() == [7.0, 7.0, 1.0, 1.0]


def test_micro_batches_are_weighted_by_the_pairs_sought() -> None:
    student, lesson = random_view(1), lesson_of(random_view(2), random_targets())
    term = term_for(student, hard_negative_box_weight=1.0)
    alone, prepared = run_term(term, student, lesson)
    shared, _ = run_term(term, student, lesson, prepared.amount * 4)
    for name, value in alone.items():
        assert shared[name].item() == pytest.approx(value.item() / 4)


def test_inner_weights_scale_their_parts() -> None:
    student, lesson = random_view(1), lesson_of(random_view(2), random_targets())
    plain, _ = run_term(term_for(student), student, lesson)
    scaled, _ = run_term(term_for(student, class_weight=3.0, box_weight=1.0, giou_weight=0.0), student, lesson)
    assert scaled["lapd_class"].item() == pytest.approx(3 * plain["lapd_class"].item())
    assert scaled["lapd_box"].item() == pytest.approx(plain["lapd_box"].item() / 5)
    assert scaled["lapd_giou"].item() == 0.0


def test_objects_the_student_could_not_match_make_no_pair() -> None:
    positives = GroupQuerySelection(select="positives")
    student, lesson = random_view(1), lesson_of(random_view(2), random_targets(), positives)
    term = term_for(student, selection=positives)
    prepared = term.prepare(lesson)
    answer = answer_of(student, lesson.targets)
    lost = term(StudentAnswer(student, torch.full_like(answer.match, -1)), lesson, prepared, prepared.amount)
    assert [value.item() for value in lost.values()] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("options", [{"scope": "x"}, {"layers": "x"}, {"temperature": 0.0}], ids=str)
def test_an_unknown_choice_is_refused_by_name(options: dict) -> None:
    with pytest.raises(ConfigError, match=f"lapd.{next(iter(options))}"):
        term_for(random_view(), **options)


def test_masks_become_lists_of_indices() -> None:
    mask = torch.tensor([[False, True, True], [True, False, False], [False, False, False]])
    assert listed(mask, 2).tolist() == [[1, 2], [0, -1], [-1, -1]]
    assert listed(mask, 0).shape == (3, 0)


def test_flat_rows_point_at_their_layer_and_image() -> None:
    stack = torch.arange(2 * 3 * 5).view(2, 3, 5)  # [L, B, Q]
    query, layers = torch.tensor([[[4], [0], [2]]]), torch.tensor([1])
    assert stack.flatten()[flat_rows(query, layers, 5)].tolist() == [[[19], [20], [27]]]


@pytest.mark.parametrize("counts", [(2, 0), (0, 0)], ids=["objects", "no objects"])
@pytest.mark.parametrize("scope", ["group", "image"])
@pytest.mark.parametrize(
    "selection",
    [GroupQuerySelection(), GroupQuerySelection(cap=None, max_hard_negatives=None), GroupQuerySelection(select="all")],
    ids=["capped", "uncapped", "all"],
)
def test_room_for_all_hard_negatives_allowed_gives_the_same_loss(
    monkeypatch: pytest.MonkeyPatch, selection: GroupQuerySelection, scope: str, counts: tuple[int, ...]
) -> None:
    """On a GPU nobody waits for their number: as many places are made as the selection allows."""
    student, teacher = random_view(1), random_view(2)
    lesson = lesson_of(teacher, random_targets(counts=counts), selection=selection)
    options = {"scope": scope, "selection": selection, "hard_negative_box_weight": 1.0}
    exact, _ = run_term(term_for(student, **options), student, lesson)
    monkeypatch.setattr(host, "waits_for", lambda tensor: True)
    roomy, _ = run_term(term_for(student, **options), student, lesson)
    assert {k: v.item() for k, v in roomy.items()} == pytest.approx({k: v.item() for k, v in exact.items()})
