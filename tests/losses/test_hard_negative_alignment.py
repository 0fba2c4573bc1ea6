from dataclasses import replace
from typing import Any

import pytest
import torch

from builders_views import answer_of, lesson_of, random_targets, random_view
from qskd.data.batch import Targets
from qskd.losses.hard_negative_alignment import align_hard_negatives
from qskd.losses.local_alignment_prediction import LocalAlignmentPrediction
from qskd.losses.term import Lesson
from qskd.models.view import DetrView
from qskd.selection.groups import GroupQuerySelection, Role, matched_object

A, B = [0.2, 0.5, 0.2, 0.4], [0.8, 0.5, 0.2, 0.4]  # two objects, far apart
NEAR_A, NEARER_A, NEAR_B = [0.24, 0.5, 0.2, 0.4], [0.22, 0.5, 0.2, 0.4], [0.78, 0.5, 0.2, 0.4]
NOWHERE, NOWHERE_NEAR_A = [0.5, 0.05, 0.02, 0.02], [0.35, 0.5, 0.06, 0.1]


def hand_view(boxes: list[list[float]], logits: list[float] | None = None) -> DetrView:
    view = random_view(layers=1, images=1, queries=len(boxes), classes=1)
    values = torch.tensor(logits or [0.0] * len(boxes)).view(1, 1, -1, 1)
    return replace(view, boxes=torch.tensor(boxes)[None, None], logits=values)


def partners(
    student: DetrView, match: list[int], teacher: DetrView, teacher_match: list[int], **options: Any
) -> dict[int, int]:
    """Student query by teacher query."""
    targets = Targets.from_lists([torch.tensor([0, 0])], [torch.tensor([A, B])])
    selection = options.pop("selection", GroupQuerySelection())
    groups = selection.group(teacher, targets, torch.tensor([[teacher_match]]))
    lesson = Lesson(teacher, groups, targets, torch.tensor([True]))
    term = LocalAlignmentPrediction(num_student_layers=1, num_student_queries=student.num_queries)
    prepared = term.prepare(lesson).tensors
    settings = {"scope": "group", "top_up": True} | options
    found = align_hard_negatives(student, torch.tensor([[match]]), lesson, prepared, selection, **settings)
    hard = prepared["query"][0, 0, 2:].tolist()
    return {query: one for query, one in zip(hard, found[0, 0].tolist(), strict=True) if one >= 0}


def test_each_hard_negative_finds_its_like_around_its_own_object() -> None:
    teacher = hand_view([A, B, NEAR_A, NEAR_B])
    student = hand_view([NEAR_B, NEAR_A, B, A])
    assert partners(student, [3, 2], teacher, [0, 1]) == {2: 1, 3: 0}


@pytest.mark.parametrize(("scope", "expected"), [("group", {}), ("image", {2: 2})])
def test_another_objects_query_stands_in_only_in_the_scope_of_an_image(scope: str, expected: dict) -> None:
    teacher, student = hand_view([A, B, NEAR_A]), hand_view([A, B, NEAR_B])
    assert partners(student, [0, 1], teacher, [0, 1], scope=scope, top_up=False) == expected


def test_missing_candidates_are_topped_up_with_the_next_nearest_query() -> None:
    # Neither 2 nor 3 of the student touches A; 3 is nearer to it. Its class cost would favour 2.
    teacher = hand_view([A, B, NEAR_A], [0.0, 0.0, 4.0])
    student = hand_view([A, B, NOWHERE, NOWHERE_NEAR_A], [0.0, 0.0, 4.0, -4.0])
    assert partners(student, [0, 1], teacher, [0, 1]) == {2: 3}
    assert partners(student, [0, 1], teacher, [0, 1], top_up=False) == {}


def test_a_student_positive_is_never_a_candidate() -> None:
    # The student's 0 equals the teacher's hard negative, but is matched to A.
    teacher, student = hand_view([A, B, NEAR_A]), hand_view([NEAR_A, B, NOWHERE])
    assert partners(student, [0, 1], teacher, [0, 1]) == {2: 2}


def test_the_class_decides_between_equal_boxes() -> None:
    teacher = hand_view([A, B, NEAR_A, NEAR_A], [0.0, 0.0, 3.0, -3.0])
    student = hand_view([A, B, NEAR_A, NEAR_A], [0.0, 0.0, -2.0, 2.0])
    assert partners(student, [0, 1], teacher, [0, 1]) == {2: 3, 3: 2}


def test_only_the_nearest_are_candidates_under_a_cap() -> None:
    teacher, student = hand_view([A, B, NEAR_A]), hand_view([A, B, NEAR_A, NEARER_A])
    assert partners(student, [0, 1], teacher, [0, 1]) == {2: 2}
    capped = GroupQuerySelection(cap=1)
    assert partners(student, [0, 1], teacher, [0, 1], selection=capped) == {2: 3}


@pytest.mark.parametrize(
    "selection", [GroupQuerySelection(cap=3), GroupQuerySelection(cap=None)], ids=["cap", "no-cap"]
)
@pytest.mark.parametrize("scope", ["group", "image"])
def test_every_partner_is_free_and_used_once(selection: GroupQuerySelection, scope: Any) -> None:
    student, targets = random_view(1, queries=20), random_targets((4, 2))
    lesson = lesson_of(random_view(2, queries=30), targets, selection)
    match = answer_of(student, targets).match
    prepared = LocalAlignmentPrediction(num_student_layers=2, num_student_queries=20).prepare(lesson)
    found = align_hard_negatives(student, match, lesson, prepared.tensors, selection, scope=scope, top_up=True)
    is_positive = matched_object(match, 20) >= 0
    assert (found >= 0).any()
    for layer in range(2):
        for image in range(2):
            used = [one for one in found[layer, image].tolist() if one >= 0]
            assert len(set(used)) == len(used)
            assert not is_positive[layer, image, used].any()


def test_a_query_that_is_not_a_number_is_the_last_choice() -> None:
    teacher, student = hand_view([A, B, NEAR_A]), hand_view([A, B, NEAR_A, NEARER_A])
    logits = student.logits.clone()
    logits[..., 2, :] = float("nan")
    assert partners(replace(student, logits=logits), [0, 1], teacher, [0, 1]) == {2: 3}


def test_nothing_is_aligned_where_the_teacher_has_no_hard_negatives() -> None:
    lesson = lesson_of(random_view(2), random_targets(), GroupQuerySelection(select="positives"))
    assert not (lesson.groups.role == Role.HARD_NEGATIVE).any()
    student = random_view(1)
    prepared = LocalAlignmentPrediction(num_student_layers=2, num_student_queries=12).prepare(lesson)
    found = align_hard_negatives(
        student,
        answer_of(student, lesson.targets).match,
        lesson,
        prepared.tensors,
        GroupQuerySelection(),
        scope="group",
        top_up=True,
    )
    assert found.shape == (2, 2, 0)


def test_a_query_matched_to_an_object_the_teacher_does_not_know_is_no_candidate() -> None:
    teacher, student = hand_view([A, B, NEAR_A]), hand_view([A, B, NEARER_A, NEAR_A])
    assert partners(student, [0, 1], teacher, [0, 1]) == {2: 3}
    taken = torch.tensor([[[True, True, False, True]]])
    assert partners(student, [0, 1], teacher, [0, 1], taken=taken) == {2: 2}
