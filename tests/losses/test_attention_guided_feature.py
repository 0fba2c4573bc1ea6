from dataclasses import replace

import pytest
import torch

import reference_criterion as reference
from builders_views import (
    FOCAL,
    AttentionMatrix,
    facts_of,
    lesson_of,
    random_targets,
    random_view,
    run_term,
    with_gradient,
)
from qskd.errors import ConfigError
from qskd.losses.attention_guided_feature import (
    AttentionGuidedFeature,
    UnmaskedFeature,
    query_weights,
    resize_mean,
    resize_sum,
)
from qskd.losses.term import StudentAnswer
from qskd.models.view import DetrView
from qskd.selection.groups import GroupQuerySelection, QueryGroups

TWO_LEVELS = {"channels": (6, 6), "grids": ((4, 6), (2, 3)), "strides": (16, 32)}
PADDED = [(1.0, 1.0), (0.5, 0.67), (1.0, 0.34)]


def term_for(student: DetrView, teacher: DetrView, **options: object) -> AttentionGuidedFeature:
    ours, theirs = facts_of(student), facts_of(teacher)
    return AttentionGuidedFeature(
        student_channels=ours.memory_channels,
        teacher_channels=theirs.memory_channels,
        student_strides=ours.strides,
        teacher_strides=theirs.strides,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("norm", ["mass", "area"])
@pytest.mark.parametrize("normalise", [False, True], ids=["raw", "normalised"])
@pytest.mark.parametrize("per_level", [False, True], ids=["one-peak", "peak-per-level"])
@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_value_and_gradient_equal_the_formula_token_by_token(
    norm: str, normalise: bool, per_level: bool, power: float
) -> None:
    options = {"images": 3, "content": PADDED, "dtype": torch.float64, **TWO_LEVELS}
    student = with_gradient(random_view(1, queries=9, **(options | {"channels": (5, 5)})))
    teacher, targets = random_view(2, **options), random_targets((3, 2, 0))
    term = term_for(student, teacher, norm=norm, normalise=normalise, norm_per_level=per_level, power=power).double()
    for projection in term.projections:
        projection.load_state_dict(term.projections[0].state_dict())
    parts, _ = run_term(term, student, lesson_of(teacher, targets))
    linear = term.projections[0]
    expected = reference.agfd(
        student,
        teacher,
        targets,
        FOCAL,
        linear.weight,
        linear.bias,
        norm=norm,
        normalise=normalise,
        per_level=per_level,
        power=power,
    )
    assert parts["agfd"].item() == pytest.approx(expected.item(), rel=1e-5)
    leaves = [*student.memory, *term.parameters()]
    gradient, wanted = (
        torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True) for value in (parts["agfd"], expected)
    )
    for level in range(2):
        torch.testing.assert_close(gradient[level], wanted[level], rtol=1e-4, atol=1e-8)
    # The reference has one projection for both levels: its gradient is the sum.
    torch.testing.assert_close(gradient[2] + gradient[4], wanted[2], rtol=1e-4, atol=1e-8)


def hand_view(memory: list[float], attention: list[list[float]]) -> DetrView:
    """One layer and image, one channel, tokens in a row; queries as many as attention has rows."""
    view = random_view(layers=1, images=1, queries=len(attention), channels=(1,), grids=((1, len(memory)),))
    return replace(
        view,
        memory=(torch.tensor(memory).view(1, 1, 1, -1),),
        attention=AttentionMatrix(torch.tensor([[attention]])),
    )


def hand_groups(role: list[int], giou: list[float]) -> QueryGroups:
    queries = len(role)
    return QueryGroups(
        role=torch.tensor([[role]], dtype=torch.uint8),
        owner=torch.zeros(1, 1, queries, dtype=torch.long),
        giou=torch.tensor([[giou]]),
        match=torch.tensor([[[0]]]),
    )


@pytest.mark.parametrize(
    ("norm", "power", "expected"),
    [
        ("mass", 2.0, (1 * 1 + 0.25 * 4) / 1.25),
        ("area", 2.0, (1 * 1 + 0.25 * 4) / 3),
        ("mass", 1.0, (1 * 1 + 0.5 * 4) / 1.5),
    ],
)
def test_one_layer_by_hand(norm: str, power: float, expected: float) -> None:
    # omega = 1 + (1, 0) on positive and hard negative, nothing on the easy one: shares 2/3 and 1/3.
    # mass = 2/3 (1, 0, 0) + 1/3 (0, 1, 0) = (2/3, 1/3, 0); over its peak (1, 1/2, 0); W = (1, 1/4, 0) or, not squared,
    # (1, 1/2, 0). squared distances (1, 4, 9): sum of W d = 1 + 1 = 2; sum of W = 5/4; tokens 3.
    attention = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    teacher, student = hand_view([0.0, 0.0, 0.0], attention), hand_view([1.0, 2.0, 3.0], attention)
    lesson = replace(lesson_of(teacher, random_targets((1,))), groups=hand_groups([1, 2, 0], [1.0, 0.0, 0.9]))
    parts, _ = run_term(term_for(student, teacher, norm=norm, normalise=False, power=power), student, lesson)
    assert parts["agfd"].item() == pytest.approx(expected, rel=1e-4)


def test_a_query_as_far_as_can_be_still_weighs_a_little() -> None:
    weights = query_weights(hand_groups([1, 2, 0], [-1.0, 0.0, 1.0])).flatten().tolist()
    assert weights == pytest.approx([0.001 / 1.001, 1 / 1.001, 0.0])


def test_unselected_images_weigh_nothing() -> None:
    assert query_weights(hand_groups([0, 0], [-1.0, -1.0])).tolist() == [[[0.0, 0.0]]]


def test_levels_are_paired_by_stride_and_others_left_out() -> None:
    teacher = random_view(2, channels=(6, 7, 8), grids=((8, 8), (4, 4), (2, 2)), strides=(8, 16, 32))
    student = random_view(1, channels=(5, 4), grids=((2, 2), (1, 1)), strides=(32, 64))
    term = term_for(student, teacher)
    assert term.pairs == [(0, 2)]
    assert term.projections[0].weight.shape == (8, 5)
    parts, prepared = run_term(term, student, lesson_of(teacher, random_targets()))
    assert parts["agfd"] > 0
    last = prepared.tensors["weights"][:, -4:].sum()
    assert prepared.amount.item() == pytest.approx(last.item())


def test_without_a_common_stride_the_error_names_both() -> None:
    with pytest.raises(ConfigError, match=r"\(32,\).*\(8, 16\)"):
        AttentionGuidedFeature(
            student_channels=(4,), teacher_channels=(4, 4), student_strides=(32,), teacher_strides=(8, 16)
        )


@pytest.mark.parametrize("option", ["norm", "projection"])
def test_an_unknown_choice_is_refused_by_name(option: str) -> None:
    with pytest.raises(ConfigError, match=f"agfd.{option} is 'x'"):
        term_for(random_view(), random_view(), **{option: "x"})


@pytest.mark.parametrize("epsilon", [0.0, -1e-6, float("nan"), float("inf")])
def test_an_epsilon_with_which_images_without_objects_would_weigh_nan_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match=f"agfd.epsilon is {epsilon}; it must be above 0"):
        AttentionGuidedFeature(
            student_channels=(4,), teacher_channels=(4,), student_strides=(8,), teacher_strides=(8,), epsilon=epsilon
        )


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan"), float("inf")])
def test_a_power_that_is_not_above_0_is_refused(power: float) -> None:
    with pytest.raises(ConfigError, match=f"agfd.power is {power}; it must be above 0"):
        term_for(random_view(), random_view(), power=power)


@pytest.mark.parametrize(
    ("channels", "projection", "kind"),
    [(6, "auto", torch.nn.Identity), (6, "linear", torch.nn.Linear), (4, "auto", torch.nn.Linear)],
)
def test_projections_exist_where_they_are_needed(channels: int, projection: str, kind: type) -> None:
    student = random_view(channels=(channels,))
    term = term_for(student, random_view(2), projection=projection)
    assert isinstance(term.projections[0], kind)
    if channels == 6:
        tokens = torch.randn(3, 6)
        torch.testing.assert_close(term.projections[0](tokens), tokens)


@pytest.mark.parametrize(
    ("ours", "theirs", "together", "places"),
    [
        (4, 6, 1, [0, 1, 3, 4]),
        (2, 6, 1, [0, 3]),
        (5, 6, 1, [0, 1, 2, 3, 4]),
        (4, 8, 2, [0, 1, 4, 5]),
        (5, 8, 2, [0, 1, 3, 4, 6]),  # no pairs of five
    ],
)
def test_channels_taken_from_the_teacher_are_put_where_they_were(
    ours: int, theirs: int, together: int, places: list[int]
) -> None:
    term = term_for(random_view(channels=(ours,)), random_view(2, channels=(theirs,)), begins_alike=together)
    tokens = torch.randn(3, theirs)
    back = term.projections[0](tokens[:, places])
    assert torch.equal(back[:, places], tokens[:, places])
    assert not back[:, [channel for channel in range(theirs) if channel not in places]].any()


def test_a_student_of_more_channels_has_taken_none() -> None:
    term = term_for(random_view(channels=(6,)), random_view(2, channels=(4,)), begins_alike=1)
    assert term.projections[0].weight.count_nonzero() == 24


def test_teacher_features_and_weights_meet_the_student_on_its_own_grid() -> None:
    # A grid of half the resolution: the teacher's map is constant in each 2 x 2 block, so nothing is lost.
    student = random_view(1, grids=((2, 3),))
    big = tuple(level.repeat_interleave(2, -1).repeat_interleave(2, -2) for level in student.memory)
    teacher = replace(random_view(2, grids=((4, 6),)), memory=big)
    lesson = lesson_of(teacher, random_targets())
    same, _ = run_term(term_for(student, teacher), student, lesson)
    other, _ = run_term(
        term_for(student, teacher, normalise=False), replace(student, memory=(student.memory[0] + 1,)), lesson
    )
    assert same["agfd"].item() == pytest.approx(0.0, abs=1e-6)
    # Every squared distance is 1 and the weights keep their sum, which is what they are divided by.
    assert other["agfd"].item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (7, 4)], ids=str)
def test_resized_weights_keep_their_sum(size: tuple[int, int]) -> None:
    values = torch.rand(2, 4, 4)
    torch.testing.assert_close(resize_sum(values, size).sum((1, 2)), values.sum((1, 2)))


def test_resizing_by_hand() -> None:
    # Three cells on two: the middle one is halved.
    assert resize_sum(torch.tensor([[1.0, 2.0, 4.0]]), (1, 2)).tolist() == [[2.0, 5.0]]
    valid = torch.tensor([[[True, True, False]]])
    mean = resize_mean(torch.tensor([[[[1.0, 4.0, 100.0]]]]), valid, (1, 2))
    assert mean.flatten().tolist() == pytest.approx([(1 + 0.5 * 4) / 1.5, 4.0])


def test_resizing_between_canvases_that_an_image_fills_unlike_by_hand() -> None:
    whole, half, most = torch.ones(1, 2), torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, 0.75]])
    values = torch.tensor([[[1.0, 2.0, 4.0, 8.0]]])
    assert resize_sum(values, (1, 4), (whole, half)).tolist() == [[[3.0, 12.0, 0.0, 0.0]]]
    # What lies beyond the image is no part of it.
    assert resize_sum(values, (1, 4), (half, whole)).tolist() == [[[0.5, 0.5, 1.0, 1.0]]]
    # Of three quarters of two cells, the first has two thirds of the image: a half and a quarter of its sum.
    found = resize_sum(torch.tensor([[[6.0, 5.0]]]), (1, 2), (most, whole))
    assert found.flatten().tolist() == pytest.approx([6 * 0.75, 6 * 0.25 + 5.0])


def test_every_image_keeps_its_own_place() -> None:
    old = torch.tensor([[1.0, 1.0], [0.5, 1.0]])
    new = torch.tensor([[1.0, 1.0], [1.0, 0.5]])
    values = torch.rand(2, 4, 4)
    found = resize_sum(values, (6, 8), (old, new))
    for image in range(2):
        one = slice(image, image + 1)
        torch.testing.assert_close(found[one], resize_sum(values[one], (6, 8), (old[one], new[one])))
    inside = values[1, :2].sum()
    torch.testing.assert_close(found[1].sum(), inside)
    assert found[1, :, 4:].abs().max() == 0


def test_a_padded_student_is_compared_with_a_square_teacher_where_the_image_is() -> None:
    # The student's canvas is twice as wide as its image; the teacher's square is the image alone.
    ramp = torch.linspace(0, 3, 4).expand(1, 2, 4, 4).clone()  # [1, D, h, w], rising from left to right
    ramp[:, 1] *= -1
    padded = torch.zeros(1, 2, 4, 8)
    padded[..., :4] = ramp
    is_padding = torch.zeros(1, 4, 8, dtype=torch.bool)
    is_padding[..., 4:] = True
    teacher = replace(random_view(1, images=1, grids=((4, 4),), channels=(2,)), memory=(ramp,))
    plain = random_view(1, images=1, grids=((4, 8),), channels=(2,))
    student = replace(plain, memory=(padded,), is_padding=(is_padding,))
    lesson = replace(lesson_of(teacher, random_targets((2,))), content=torch.tensor([[128, 128]]))
    term = UnmaskedFeature(
        student_channels=[2], teacher_channels=[2], student_strides=[32], teacher_strides=[32], normalise=False
    )
    prepared = term.prepare(lesson)
    answer = StudentAnswer(student, torch.zeros(2, 1, 2, dtype=torch.long), content=torch.tensor([[128, 128]]))
    right = term(answer, lesson, prepared, prepared.amount)["feature"]
    wrong = term(replace(answer, content=None), replace(lesson, content=None), prepared, prepared.amount)["feature"]
    assert right.item() == pytest.approx(0.0, abs=1e-9)
    assert wrong.item() > 0.1


def test_unmasked_features_are_the_plain_mean_over_valid_tokens() -> None:
    content = [(1.0, 1.0), (0.34, 0.5)]
    student, teacher = random_view(1, content=content), random_view(2, content=content)
    facts = facts_of(student)
    term = UnmaskedFeature(
        student_channels=facts.memory_channels,
        teacher_channels=facts.memory_channels,
        student_strides=facts.strides,
        teacher_strides=facts.strides,
        normalise=False,
    )
    parts, _ = run_term(term, student, lesson_of(teacher, random_targets((0, 0))))
    valid = ~student.is_padding[0]
    squared = (student.memory[0] - teacher.memory[0]).square().mean(1)
    assert parts["feature"].item() == pytest.approx(squared[valid].mean().item(), rel=1e-5)


def test_only_selected_queries_guide() -> None:
    view = random_view(2)
    matrix = view.attention.matrix.clone()  # type: ignore[union-attr]
    lesson = lesson_of(view, random_targets(), GroupQuerySelection(threshold=0.3, cap=1))
    matrix[lesson.groups.role == 0] = 7.0
    changed = replace(lesson, view=replace(view, attention=AttentionMatrix(matrix)))
    student = random_view(1)
    term = term_for(student, view)
    assert run_term(term, student, changed)[0]["agfd"] == run_term(term, student, lesson)[0]["agfd"]
