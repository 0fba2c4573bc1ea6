"""Latency side by side leaves models as they were."""

from pathlib import Path
from types import SimpleNamespace

import qskd
from qskd.data.transforms import ImageSize
from qskd.models.loading import load_model
from qskd.reporting.closeup import Shown
from qskd.runs.timing import _ready, time_side_by_side

TEACHER = Path(qskd.__file__).parent / "assets" / "demo_teacher"


def sitter(name: str, side: int = 64) -> SimpleNamespace:
    shown = Shown(name, name, name, "teacher")
    return SimpleNamespace(open=lambda: load_model(TEACHER), size=ImageSize(square=side), is_shown=True, shown=shown)


def test_weights_can_be_learnt_from_afterwards() -> None:
    adapter, _ = _ready(sitter("a"))
    assert not [name for name, parameter in adapter.model.named_parameters() if parameter.is_inference()]
    assert all(parameter.requires_grad for parameter in adapter.model.parameters())


def test_a_model_that_cannot_read_its_image_is_left_out_with_a_note() -> None:
    notes: list[str] = []
    made = time_side_by_side([sitter("a"), sitter("b", side=33)], notes)
    assert made is not None
    assert [one.label for one in made.latencies] == ["a"]
    assert "No latency of b" in notes[0]
    assert time_side_by_side([], []) is None
