"""The demo in small: fewer scenes, fewer steps, everything else as it is."""

import json

import pytest

from qskd.errors import ConfigError
from qskd.runs import demo


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 16)
    monkeypatch.setattr(demo, "VAL_IMAGES", 6)
    monkeypatch.setattr(demo, "IMAGE_SIZE", 64)


@pytest.mark.slow
def test_the_demo_draws_trains_distils_and_compares(small, tmp_path, capsys):
    made = demo.demo(demo.DemoOptions(output_dir=str(tmp_path), steps=3, seed=5))
    assert [(row.name, row.role) for row in made.rows[1:]] == [
        ("baseline", "baseline"),
        ("inherited", "baseline"),
        ("distilled", "distilled"),
    ]
    assert made.rows[0].role == "teacher"
    assert made.html.is_file()
    assert made.pictures is not None
    names = ("baseline", "inherited", "distilled")
    runs = [json.loads((tmp_path / run / "summary.json").read_text()) for run in names]
    assert [(run["kind"], run["method"], run["steps"], run["seed"]) for run in runs] == [
        ("train", "none", 3, 5),
        ("distill", "none", 3, 5),
        ("distill", "qskd", 3, 5),
    ]
    # Only start and teacher make the difference: the same student, on the same images.
    assert len({(run["cost"]["parameters"], run["train_images"]) for run in runs}) == 1
    assert runs[1]["start"] == runs[2]["start"] != runs[0]["start"]
    assert runs[2]["teacher"]["metrics"]["AP50"] > 0.05
    said = capsys.readouterr().out
    assert said.index("] baseline") < said.index("] inherited") < said.index("] distilled") < said.index("] comparing")
    with pytest.raises(ConfigError, match="holds a demo already"):
        demo.demo(demo.DemoOptions(output_dir=str(tmp_path), steps=3))


def test_scenes_that_were_drawn_half_are_drawn_again(small, tmp_path):
    demo.draw_scenes(tmp_path)
    wanted = (tmp_path / "annotations" / "instances_val.json").read_text()
    (tmp_path / "annotations" / "instances_val.json").unlink()  # as after Ctrl-C
    demo.draw_scenes(tmp_path)
    assert (tmp_path / "annotations" / "instances_val.json").read_text() == wanted
    (tmp_path / "images" / "train" / "000001.jpg").unlink()
    demo.draw_scenes(tmp_path)  # complete: not touched
    assert not (tmp_path / "images" / "train" / "000001.jpg").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "qkd"}, "There is no method 'qkd'"),
        ({"steps": 0}, "--steps is 0"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_bad_options_are_refused_before_anything_is_drawn(tmp_path, options, told):
    with pytest.raises(ConfigError, match=told):
        demo.demo(demo.DemoOptions(output_dir=str(tmp_path / "demo"), **options))
    assert not (tmp_path / "demo").exists()
