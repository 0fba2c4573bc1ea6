import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qskd.data import synthetic
from qskd.data.shapes import EASY, HARD, Outline, Pose, coverage
from qskd.data.sources import open_source
from qskd.data.synthetic import Difficulty, class_names, draw_dataset, draw_scene, seen_boxes
from qskd.errors import ConfigError


@pytest.mark.parametrize("difficulty", ["easy", "hard"])
def test_boxes_are_tight_around_the_pixels_of_their_objects(difficulty: Difficulty) -> None:
    for index in range(12):
        scene = draw_scene(index, size=64, difficulty=difficulty)
        for number, (left, top, width, height) in enumerate(scene.boxes.tolist()):
            pixels = [(x, y) for y in range(64) for x in range(64) if scene.owner[y, x] == number]
            xs, ys = zip(*pixels, strict=True)
            assert (left, top) == (min(xs), min(ys))
            assert (left + width - 1, top + height - 1) == (max(xs), max(ys))
        assert set(np.unique(scene.owner)) - {-1} == set(range(len(scene.labels)))


def test_boxes_by_hand() -> None:
    owner = np.full((4, 5), -1, dtype=np.int16)
    owner[1, 2] = owner[3, 4] = 0
    owner[0, 0] = 1
    assert seen_boxes(owner, 2).tolist() == [[2, 1, 3, 3], [0, 0, 1, 1]]
    assert seen_boxes(owner, 0).shape == (0, 4)


def test_a_scene_depends_on_nothing_but_its_arguments() -> None:
    first = draw_scene(3, size=64)
    draw_scene(4, size=64)
    np.random.seed(1)
    again = draw_scene(3, size=64)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.boxes, again.boxes)


def test_other_positions_splits_and_seeds_give_other_scenes() -> None:
    scenes = [
        draw_scene(0, size=64),
        draw_scene(1, size=64),
        draw_scene(0, size=64, seed=1),
        draw_scene(0, size=64, split="val"),
        draw_scene(0, size=64, difficulty="hard"),
    ]
    assert len({scene.pixels.tobytes() for scene in scenes}) == len(scenes)


def test_scenes_range_from_empty_to_eight_objects_of_every_class() -> None:
    scenes = [draw_scene(index, size=64, difficulty="hard") for index in range(250)]
    counts = [len(scene.labels) for scene in scenes]
    assert min(counts) == 0
    assert 7 <= max(counts) <= 8
    assert {int(label) for scene in scenes for label in scene.labels} == set(range(len(HARD)))
    sides = np.concatenate([scene.boxes[:, 2:] for scene in scenes]) / 64
    assert sides.max() < 0.7
    assert np.median(sides) < 0.3


def test_at_least_thirty_percent_of_every_object_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    totals: list[int] = []

    def recorded(*arguments: Any) -> Any:
        placed = place(*arguments)
        if placed is not None:
            totals.append(placed[3])
        return placed

    place = synthetic._place
    monkeypatch.setattr(synthetic, "_place", recorded)
    shares = []
    for index in range(60):
        totals.clear()
        scene = draw_scene(index, size=96, difficulty="hard")
        areas = np.bincount(scene.owner[scene.owner >= 0], minlength=len(scene.labels))
        shares.extend(areas / np.array(totals))
    assert min(shares) >= 0.3
    assert min(shares) < 0.5  # there is occlusion
    assert max(shares) == 1


def test_objects_stand_out_from_what_surrounds_them() -> None:
    distances = []
    for index in range(40):
        scene = draw_scene(index)
        ground = scene.pixels[scene.owner < 0].mean(axis=0)
        for number in range(len(scene.labels)):
            distances.append(np.abs(scene.pixels[scene.owner == number].mean(axis=0) - ground).max())
    assert np.quantile(distances, 0.1) > 30


@pytest.mark.parametrize("name", HARD)
def test_an_upright_shape_covers_the_area_of_its_polygon(name: str) -> None:
    pose = Pose(x=40.3, y=38.6, radius=30, angle=0.4, flatness=1.3)

    def area(points: np.ndarray) -> float:  # the shoelace formula; squeezing keeps areas
        x, y = points.T
        return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2 * 30**2

    outline: Outline = HARD[name]
    expected = area(outline.outer) - (0 if outline.hole is None else area(outline.hole))
    covered, left, top = coverage(outline, pose)
    assert covered.sum() == pytest.approx(expected, rel=0.03)
    assert covered.min() >= 0
    assert covered.max() == 1
    if outline.hole is not None:  # empty in the middle
        assert covered[round(38.6) - top, round(40.3) - left] == 0


def test_hard_scenes_add_classes_to_the_easy_ones() -> None:
    assert class_names("easy") == tuple(EASY)
    assert class_names("hard")[: len(EASY)] == tuple(EASY)
    assert len(HARD) >= len(EASY) + 3


def test_a_dataset_is_read_back_as_it_was_drawn(tmp_path: Path) -> None:
    draw_dataset(tmp_path, train=6, val=3, size=64, seed=4)
    for split, count in (("train", 6), ("val", 3)):
        index = open_source(tmp_path).load(split, strict=True)
        assert len(index) == count
        assert index.class_names == class_names("easy")
        assert not index.problems.counts
        for at in range(count):
            scene = draw_scene(at, split="train" if split == "train" else "val", size=64, seed=4)
            assert index.labels(at).tolist() == scene.labels.tolist()
            corners = index.boxes(at)
            np.testing.assert_array_equal(corners[:, 2:] - corners[:, :2], scene.boxes[:, 2:])
            with Image.open(index.images[at].path) as image:
                difference = np.asarray(image).astype(int) - scene.pixels
            assert np.abs(difference).mean() < 4


def test_a_larger_dataset_begins_with_the_smaller_one(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "small", train=2, val=0, size=48)
    draw_dataset(tmp_path / "large", train=4, val=1, size=48)
    for name in ("000001.jpg", "000002.jpg"):
        small, large = (tmp_path / which / "images" / "train" / name for which in ("small", "large"))
        assert small.read_bytes() == large.read_bytes()
    entries = [
        json.loads((tmp_path / which / "annotations" / "instances_train.json").read_text())["annotations"]
        for which in ("small", "large")
    ]
    assert entries[1][: len(entries[0])] == entries[0]


@pytest.mark.parametrize(
    "options",
    [{"train": -1}, {"val": -1}, {"size": 16}, {"seed": -1}, {"difficulty": "medium"}],
)
def test_impossible_requests_are_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        draw_dataset(tmp_path, **{"train": 1, "val": 1, **options})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
