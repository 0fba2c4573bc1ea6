from dataclasses import replace

import pytest
import torch
from torch import Tensor

import reference_criterion as reference
from builders_views import FOCAL, SOFTMAX, random_targets, random_view
from qskd.data.batch import Targets
from qskd.errors import ConfigError
from qskd.models.view import DetrView
from qskd.selection.groups import GroupQuerySelection, QueryGroups, Role, rank_within

SETTINGS = {
    "default": {},
    "threshold": {"threshold": 0.2},
    "cap": {"cap": 1},
    "most": {"most": 3},
    "cap-and-most": {"cap": 2, "most": 3, "threshold": -0.2},
    "agreement": {"agreement": 0.3},
    "unlimited": {"cap": None, "most": None, "threshold": -0.5},
    "positives": {"mode": "positives"},
    "all": {"mode": "all", "cap": 1, "most": 1},
}
NAMES = {"most": "max_hard_negatives", "agreement": "class_agreement", "mode": "select"}


def selection_of(settings: dict) -> GroupQuerySelection:
    return GroupQuerySelection(**{NAMES.get(name, name): value for name, value in settings.items()})


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])
def test_groups_equal_those_found_one_query_at_a_time(settings: dict, softmax: bool) -> None:
    view = random_view(3, layers=2, images=3, queries=14, softmax=softmax)
    targets, costs = random_targets((3, 0, 5)), SOFTMAX if softmax else FOCAL
    groups = selection_of(settings)(view, targets, costs)
    for layer in range(2):
        for image in range(3):
            matched = reference.match(view, targets, costs, layer, image)
            roles, owners, values = reference.select(view, targets, matched, layer, image, **settings)
            assert groups.role[layer, image].tolist() == roles
            assert groups.owner[layer, image].tolist() == owners
            assert groups.giou[layer, image].tolist() == pytest.approx(values, abs=1e-5)
            assert [q for q in groups.match[layer, image].tolist() if q >= 0] == list(
                dict(sorted(matched.items())).values()
            )


def scene(boxes: list[list[float]], objects: list[list[float]], matched: list[int], **options: object) -> QueryGroups:
    view = replace(random_view(layers=1, images=1, queries=len(boxes)), boxes=torch.tensor(boxes)[None, None])
    targets = Targets.from_lists([torch.zeros(len(objects), dtype=torch.long)], [torch.tensor(objects)])
    return GroupQuerySelection(**options).group(view, targets, torch.tensor([[matched]]))  # type: ignore[arg-type]


LEFT, RIGHT = [0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]


def test_roles_by_hand() -> None:
    # Whole image against its left half: GIoU = IoU = 1/2. Left against right half: IoU 0, hull = union, GIoU 0.
    # A quarter (x in 0..1/4) against the left half: 1/2. Quarter (0.875) against left: hull 1, union 3/4: -1/4.
    whole, quarter = [0.5, 0.5, 1.0, 1.0], [0.875, 0.5, 0.25, 1.0]
    groups = scene([LEFT, whole, RIGHT, quarter], [LEFT], [0])
    assert groups.role.flatten().tolist() == [
        Role.POSITIVE,
        Role.HARD_NEGATIVE,
        Role.EASY_NEGATIVE,
        Role.EASY_NEGATIVE,
    ]
    assert groups.giou.flatten().tolist() == pytest.approx([1.0, 0.5, 0.0, -0.25])
    assert groups.owner.flatten().tolist() == [0, 0, 0, 0]


def test_a_query_as_near_to_two_objects_belongs_to_the_first() -> None:
    groups = scene([[0.5, 0.5, 1.0, 1.0], LEFT, RIGHT], [RIGHT, LEFT], [2, 1])
    assert groups.owner.flatten().tolist() == [0, 1, 0]


def test_a_positive_belongs_to_its_object_even_if_another_is_nearer() -> None:
    groups = scene([LEFT, RIGHT], [LEFT, RIGHT], [1, 0])
    assert groups.owner.flatten().tolist() == [1, 0]
    assert groups.giou.flatten().tolist() == pytest.approx([0.0, 0.0])


def test_a_threshold_of_one_leaves_positives_only() -> None:
    groups = GroupQuerySelection(threshold=1.0)(random_view(), random_targets(), FOCAL)
    assert set(groups.role.unique().tolist()) == {Role.EASY_NEGATIVE, Role.POSITIVE}
    assert (groups.role == Role.POSITIVE).sum() == 2 * 5


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)], ids=["none-at-all", "some-without"])
@pytest.mark.parametrize("select", ["groups", "positives", "all"])
def test_without_objects_every_query_is_easy_and_nobodys(counts: tuple[int, int], select: str) -> None:
    groups = GroupQuerySelection(select=select)(random_view(), random_targets(counts), FOCAL)  # type: ignore[arg-type]
    assert (groups.role[:, 0] == Role.EASY_NEGATIVE).all()
    assert (groups.owner[:, 0] == -1).all()
    assert (groups.giou[:, 0] == -1.0).all()
    assert groups.role.dtype == torch.uint8
    assert groups.owner.dtype == torch.long
    assert groups.match.shape == (2, 2, max(counts))


def test_selection_does_not_depend_on_the_batch() -> None:
    view, targets = random_view(images=2), random_targets((4, 1))
    both = GroupQuerySelection(cap=2)(view, targets, FOCAL)
    for image, count in enumerate((4, 1)):
        alone = replace_images(view, image)
        one = Targets.from_lists([targets.labels[image, :count]], [targets.boxes[image, :count]])
        groups = GroupQuerySelection(cap=2)(alone, one, FOCAL)
        assert torch.equal(groups.role[:, 0], both.role[:, image])
        assert torch.equal(groups.match[:, 0], both.match[:, image, :count])


def replace_images(view: DetrView, image: int) -> DetrView:
    only = slice(image, image + 1)
    return replace(
        view,
        logits=view.logits[:, only],
        boxes=view.boxes[:, only],
        memory=tuple(level[only] for level in view.memory),
        is_padding=tuple(mask[only] for mask in view.is_padding),
    )


def test_a_box_that_is_not_a_number_is_easy() -> None:
    view = random_view()
    boxes: Tensor = view.boxes.clone()
    boxes[:, :, 4] = float("nan")
    groups = GroupQuerySelection()(replace(view, boxes=boxes), random_targets(), FOCAL)
    assert (groups.role[:, :, 4] == Role.EASY_NEGATIVE).all()
    assert groups.giou.isfinite().all()


def test_ranks_count_from_the_greatest_of_each_owner() -> None:
    owner = torch.tensor([0, 1, 0, 1, 0, 2])
    value = torch.tensor([0.1, 0.5, 0.9, 0.5, 0.3, 0.7])
    member = torch.tensor([True, True, True, True, False, True])
    assert rank_within(owner, value, member)[member].tolist() == [1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 1.5},
        {"cap": 0},
        {"max_hard_negatives": -1},
        {"class_agreement": 2.0},
        {"select": "some"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_out_of_range_are_refused_by_name(options: dict) -> None:
    with pytest.raises(ConfigError, match=f"selection.{next(iter(options))}"):
        GroupQuerySelection(**options)
