"""A teacher with its own image size: the same content, measured and drawn at the size it has."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

import qskd
from builders_runs import tiny_run
from builders_trainer import adapter_of
from qskd.data.batch import Batch, collate
from qskd.data.transforms import Augmentation, DetectionTransform, ImageSize
from qskd.errors import ConfigError
from qskd.runs import building, image_sizes
from qskd.runs.options import DataOptions, PairOptions
from qskd.teacher import TeacherSide

SMALL, LARGE = ImageSize(square=64), ImageSize(square=128)
TEACHER = Path(qskd.__file__).parent / "assets" / "demo_teacher"


def options(folder, scenes, **changes):
    given = {"teacher": TEACHER, "student_decoder_layers": 1, "max_steps": 2, "per_device_train_batch_size": 2}
    return tiny_run(folder, scenes, image_size=64) | given | {"teacher_image_size": 128} | changes


@pytest.mark.parametrize("augment", [Augmentation.none(), Augmentation(crop=0.5, zoom_out=0.5, flip=0.5)])
def test_both_see_the_same_part_of_the_image_in_the_same_colours(scenes, augment):
    splits = building.open_splits(DataOptions(data=str(scenes)))
    size, own = ImageSize(square=64), ImageSize(square=128)
    chosen = {name: getattr(augment, name) for name in ("flip", "crop", "zoom_out", "photometric")}
    train, _ = building.datasets(splits, DataOptions(**chosen), size, 3, own)
    samples = [train[position] for position in range(len(train))]
    for sample in samples:
        assert sample.pixels.shape == (3, 64, 64)
        assert sample.teacher_pixels.shape == (3, 128, 128)
        shrunk = F.resize(sample.teacher_pixels, [64, 64], antialias=True)
        # An edge may lie half a pixel off after rounding, never the picture.
        difference = (shrunk.float() - sample.pixels.float()).abs().mean()
        other = (shrunk.float() - samples[0].pixels.float()).abs().mean()
        assert difference < 6
        assert sample is samples[0] or difference < other / 3


@pytest.mark.parametrize("seed", range(20))
def test_boxes_of_both_sizes_agree(seed):
    objects = (np.zeros(3, dtype=np.int64), np.array([[10.0, 20, 50, 60], [100, 5, 180, 90], [3, 3, 190, 140]]))
    pixels = torch.zeros(3, 150, 200, dtype=torch.uint8)
    augment = Augmentation(crop=0.5, zoom_out=0.5, flip=0.5)
    found = []
    for side in (96, 320):
        transform = DetectionTransform(ImageSize(square=side), augment)
        found.append(transform(pixels, objects, np.random.default_rng(seed))[1])
    assert np.array_equal(found[0][0], found[1][0])
    assert np.abs(found[0][1] - found[1][1]).max() <= 1.5 / 96


def test_a_batch_gives_the_teacher_its_own_pixels_and_the_same_objects(scenes):
    splits = building.open_splits(DataOptions(data=str(scenes)))
    train, val = building.datasets(splits, DataOptions(), ImageSize(square=64), 3, ImageSize(square=96))
    batch = collate([train[0], train[1]]).to("cpu")
    seen = batch.for_teacher()
    assert seen.pixels.shape == (2, 3, 96, 96)
    assert seen.content.tolist() == [[96, 96], [96, 96]]
    assert seen.targets is batch.targets
    assert seen.image_ids == batch.image_ids
    plain = collate([val[0]])
    assert plain.for_teacher() is plain


def test_without_an_own_size_the_images_are_made_once(scenes):
    splits = building.open_splits(DataOptions(data=str(scenes)))
    size = ImageSize(square=64)
    train, _ = building.datasets(splits, DataOptions(), size, 3, size)
    assert train.teacher_transform is None
    assert train[0].teacher_pixels is None


def test_the_teacher_is_taught_from_and_measured_at_its_own_size(scenes, tmp_path, monkeypatch):
    seen: list[tuple[int, ...]] = []
    teach = TeacherSide.teach

    def spy(self: TeacherSide, batch: Batch):
        seen.append(tuple(batch.for_teacher().pixels.shape[-2:]))
        return teach(self, batch)

    monkeypatch.setattr(TeacherSide, "teach", spy)
    own = qskd.distill(**options(tmp_path / "own", scenes))
    assert set(seen) == {(128, 128)}
    summary = json.loads((own.folder / "summary.json").read_text())
    assert summary["image_size"] == [64]
    assert summary["teacher"]["image_size"] == [128]
    alone = qskd.evaluate(model=str(TEACHER), data=str(scenes), image_size=128)
    assert summary["teacher"]["metrics"]["AP"] == pytest.approx(alone["AP"], abs=1e-9)
    cost = summary["teacher"]["cost"]["gflops"]
    small = qskd.distill(**options(tmp_path / "same", scenes, teacher_image_size=None))
    assert cost > 2 * small.summary["teacher"]["cost"]["gflops"]


def test_a_teacher_that_is_only_measured_is_never_asked_and_gets_no_images(scenes, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("asked")

    made = []
    datasets = building.datasets
    monkeypatch.setattr(TeacherSide, "teach", refuse)
    monkeypatch.setattr(building, "datasets", lambda *a, **k: made.append(datasets(*a, **k)) or made[-1])
    result = qskd.distill(**options(tmp_path / "none", scenes, method="none"))
    assert made
    assert all(train.teacher_transform is None for train, _ in made)
    both, _ = datasets(building.open_splits(DataOptions(data=str(scenes))), DataOptions(), SMALL, 3, LARGE)
    assert {train.decode_at_least for train, _ in made} == {both.decode_at_least}, "the student's pixels are the same"
    teacher = result.summary["teacher"]
    assert teacher["image_size"] == [128]
    assert teacher["metrics"]["AP"] > 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher_image_size": 100}, "--teacher_image_size 100 is not a multiple of 32, which rt_detr needs. Try 96"),
        ({"teacher_max_image_size": 100}, "give the shortest with --teacher_image_size"),
        ({"teacher_image_size": 64, "teacher_max_image_size": 96}, "rt_detr reads no padding mask"),
        ({"teacher_image_size": 32}, r"picks 300 queries among .* images of 32"),
    ],
)
def test_sizes_a_teacher_cannot_take_are_refused(given, message):
    teacher, student = adapter_of("rt_detr"), adapter_of("detr")
    teacher.model.config.num_queries = 300
    pair = PairOptions(teacher="", **given)
    with pytest.raises(ConfigError, match=message):
        image_sizes.choose_sizes(DataOptions(image_size=64), pair, student, teacher)


def test_a_padded_student_may_have_a_teacher_of_squares():
    teacher, student = adapter_of("rt_detr"), adapter_of("detr")
    data = DataOptions(image_size=64, max_image_size=96)
    pair = PairOptions(teacher="", teacher_image_size=160)
    found = image_sizes.choose_sizes(data, pair, student, teacher)
    assert found == (ImageSize(shortest_edge=64, longest_edge=96), ImageSize(square=160))
    with pytest.raises(ConfigError, match="rt_detr reads no padding mask"):
        image_sizes.choose_sizes(data, PairOptions(teacher=""), student, teacher)
