import pytest
import torch

from qskd.labels import LabelMap
from qskd.models.relabel import to_student_classes
from qskd.models.view import DetrView

TEACHER = {0: "N/A", 1: "cat", 2: "dog", 3: "emu"}


def view_of(logits, no_object=None):
    layers, images, queries, _ = logits.shape
    return DetrView(logits, no_object, torch.rand(layers, images, queries, 4), (), (), ())


def random_view(softmax, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    whole = (3 * torch.randn(2, 3, 4, 5, generator=generator)).to(dtype)
    return view_of(whole[..., :4], whole[..., 4] if softmax else None)


@pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("student", [["dog", "cat"], ["dog", "fox"], ["emu", "dog", "cat"]])
def test_every_class_both_know_keeps_its_probability(softmax, student):
    view = random_view(softmax)
    label_map = LabelMap.between(TEACHER, student)

    scores = to_student_classes(view, label_map).scores()

    before = view.scores()
    for column, row in enumerate(label_map.teacher_index):
        expected = before[..., row] if row >= 0 else torch.zeros(2, 3, 4)
        torch.testing.assert_close(scores[..., column], expected, rtol=1e-5, atol=1e-7)


def test_the_probability_of_dropped_classes_goes_to_no_object():
    view = random_view(softmax=True)

    changed = to_student_classes(view, LabelMap.between(TEACHER, ["dog"]))

    nothing = 1 - changed.scores().sum(-1)
    torch.testing.assert_close(nothing, 1 - view.scores()[..., 2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_unknown_classes_stay_finite_in_half_precision(softmax, dtype):
    changed = to_student_classes(random_view(softmax, dtype), LabelMap.between(TEACHER, ["dog", "fox"]))

    assert changed.logits.dtype == dtype
    assert changed.logits.isfinite().all()
    assert changed.scores()[..., 1].max() < 1e-7


def test_the_same_vocabulary_changes_nothing():
    view = random_view(softmax=True)

    assert to_student_classes(view, LabelMap.between({0: "a", 1: "b", 2: "c", 3: "d"}, list("abcd"))) is view


def test_boxes_and_memory_are_handed_on():
    view = random_view(softmax=False)

    changed = to_student_classes(view, LabelMap.between(TEACHER, ["dog"]))

    assert changed.boxes is view.boxes
    assert changed.memory is view.memory
