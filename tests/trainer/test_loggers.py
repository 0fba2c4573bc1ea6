"""Loggers: TensorBoard gets numbers and pictures; one that cannot work is refused at once."""

from pathlib import Path

import pytest

import qskd
from builders_runs import tiny_run
from qskd.errors import ConfigError

STUDENT = Path(qskd.__file__).parent / "assets" / "demo_student.json"


def test_tensorboard_gets_numbers_and_pictures(scenes, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = {
        "model": STUDENT,
        "report_to": "tensorboard",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "logging_steps": 1,
    }
    run = qskd.train(**(tiny_run(tmp_path / "run", scenes, max_steps=2) | given))
    (events,) = {path.parent for path in run.folder.rglob("events.out.tfevents.*")}
    found = EventAccumulator(str(events), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    assert {"train/loss", "eval/AP"} <= set(found.Tags()["scalars"])
    pictures = found.Tags()["images"]
    assert len(pictures) == 4
    assert [image.step for image in found.Images(pictures[0])] == [1, 2]
    first = found.Images(pictures[0])[0]
    assert first.width > first.height > 100  # ground truth and model side by side


@pytest.mark.parametrize(
    ("name", "message"), [("tensorbored", "give none, or .*tensorboard"), ("neptune", "pip install")]
)
def test_a_logger_that_cannot_work_is_refused(scenes, tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        qskd.train(**(tiny_run(tmp_path / "run", scenes, max_steps=1) | {"model": STUDENT, "report_to": name}))
