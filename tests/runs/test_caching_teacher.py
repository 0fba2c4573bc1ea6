"""`cache` from options to a finished folder, and runs that learn from it without the teacher."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import qskd
from builders_runs import edited, entries_of, tiny_run
from builders_trainer import dataset
from qskd.cli import main
from qskd.data import transforms
from qskd.data.batch import collate
from qskd.data.synthetic import draw_dataset
from qskd.errors import CheckpointError, ConfigError, Interrupted
from qskd.lessons import cache as lessons
from qskd.lessons.shards import sealed, write_shard
from qskd.losses.presets import resolve
from qskd.models.fingerprints import weights_fingerprint
from qskd.models.loading import load_model
from qskd.runs import building, caching_pass, given_teacher
from qskd.runs.cache_key import images_key
from qskd.runs.options import DataOptions, PairOptions
from qskd.runs.recorded_teacher import open_recorded


def cache_options(folder, scenes, models, **changes):
    given = {"teacher": models["rt_detr_teacher"], "data": scenes, "output_dir": folder, "image_size": 64}
    return given | {"cache_dtype": "float32", "use_cpu": True, "preflight": False} | changes


def run_options(folder, scenes, models, **changes):
    return tiny_run(folder, scenes, student=models["rt_detr_student"], preflight=False) | changes


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(caching_pass, "_SHARD_IMAGES", 6)


@pytest.fixture(scope="module")
def kept(scenes, tiny_folders, tmp_path_factory):
    """Two epochs of 16 images in shards of 6, 6 and 4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caching_pass, "_SHARD_IMAGES", 6)
        folder = tmp_path_factory.mktemp("kept") / "lessons"
        return qskd.cache_teacher(**cache_options(folder, scenes, tiny_folders, epochs=2))


@pytest.fixture
def copy(kept, tmp_path):
    return Path(shutil.copytree(kept.folder, tmp_path / "copy"))


def losses(folder):
    return [entry["loss"] for entry in entries_of(folder)]


def written(monkeypatch):
    names = []

    def noted(folder, name, records):
        names.append(name)
        return write_shard(folder, name, records)

    monkeypatch.setattr(caching_pass, "write_shard", noted)
    return names


@pytest.mark.slow
def test_a_run_learns_the_same_as_from_the_teacher_in_memory(kept, scenes, tiny_folders, tmp_path):
    # Beyond an epoch of 4 steps; loaders run ahead of it.
    steps = {"max_steps": 7, "dataloader_num_workers": 2}
    steps |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    live = run_options(tmp_path / "live", scenes, tiny_folders, teacher=tiny_folders["rt_detr_teacher"], **steps)
    expected = qskd.distill(**live)
    found = qskd.distill(**run_options(tmp_path / "run", scenes, tiny_folders, teacher_cache=kept.folder, **steps))
    assert losses(found.folder) == pytest.approx(losses(expected.folder), rel=1e-5)
    assert len(losses(found.folder)) == 7
    ours, theirs = found.summary["teacher"], expected.summary["teacher"]
    assert ours["fingerprint"] == theirs["fingerprint"]
    assert ours["metrics"]["AP"] == pytest.approx(theirs["metrics"]["AP"], abs=1e-6)
    assert ours["cost"]["parameters"] == theirs["cost"]["parameters"]
    assert (found.folder / "eval" / "teacher_detections.npz").is_file()
    report = qskd.compare([expected.folder, found.folder], output_dir=tmp_path / "report")
    assert report is not None


def test_the_engine_answers_and_the_plain_model_is_measured(scenes, tiny_folders, tmp_path, monkeypatch):
    kinds = []
    for name, of in (("evaluate_keeping", given_teacher.evaluate_keeping), ("TeacherSide", given_teacher.TeacherSide)):

        def noted(adapter, *more, of=of, **named):
            kinds.append({type(module).__name__ for module in adapter.model.modules()})
            return of(adapter, *more, **named)

        monkeypatch.setattr(given_teacher, name, noted)
    qskd.cache_teacher(**cache_options(tmp_path / "lessons", scenes, tiny_folders))
    assert len(kinds) == 2
    assert not any("BatchNorm2d" in kind for found in kinds for kind in found)
    plain = load_model(tiny_folders["rt_detr_teacher"]).model
    content = lessons.TeacherCache.open(tmp_path / "lessons").content
    assert content.measured["cost"]["parameters"] == sum(one.numel() for one in plain.parameters())
    assert content.key["teacher"] == weights_fingerprint(plain)


def test_a_run_longer_than_the_cache_replays_it(scenes):
    data = dataset(scenes, "train")
    data.set_epoch(1)
    expected = data[3]
    data.replay(3, data.seed)
    data.set_epoch(4)
    again = data[3]
    assert torch.equal(again.pixels, expected.pixels)
    assert again.variation == expected.variation == (1, 3)
    data.set_epoch(5)
    assert not torch.equal(data[3].pixels, expected.pixels)


def test_a_run_of_another_seed_sees_what_the_teacher_saw(kept, scenes, tiny_folders, tmp_path):
    more = {"seed": 7, "max_steps": 5, "per_device_train_batch_size": 16}  # five epochs from a cache of two
    run = qskd.distill(**run_options(tmp_path / "run", scenes, tiny_folders, teacher_cache=kept.folder, **more))
    assert len(losses(run.folder)) == 5


def test_a_pass_that_was_killed_goes_on_at_the_first_missing_shard(
    kept, scenes, tiny_folders, tmp_path, monkeypatch, small_shards
):
    options = cache_options(tmp_path / "lessons", scenes, tiny_folders, epochs=2)

    def killed(folder, name, records):
        if name == "epoch001-00000":
            raise KeyboardInterrupt
        return write_shard(folder, name, records)

    monkeypatch.setattr(caching_pass, "write_shard", killed)
    with pytest.raises(Interrupted, match="the same command goes on from there"):
        qskd.cache_teacher(**options)
    with pytest.raises(CheckpointError, match="not finished"):
        lessons.TeacherCache.open(tmp_path / "lessons")
    names = written(monkeypatch)
    qskd.cache_teacher(**options)
    assert names == ["epoch001-00000", "epoch001-00001", "epoch001-00002"]
    for path in kept.folder.glob("epoch*.safetensors"):
        assert sealed(path) == sealed(tmp_path / "lessons" / path.name)


def test_more_epochs_are_added_to_those_there_are(copy, scenes, tiny_folders, monkeypatch, small_shards):
    names = written(monkeypatch)
    qskd.cache_teacher(**cache_options(copy, scenes, tiny_folders, epochs=3))
    assert names == ["epoch002-00000", "epoch002-00001", "epoch002-00002"]
    assert lessons.TeacherCache.open(copy).epochs == 3


def read_all(folder, epoch, positions):
    cache = lessons.TeacherCache.open(folder)
    return [cache.lessons.read(epoch, position) for position in positions]


@pytest.mark.parametrize("harm", ["flipped", "cut", "removed"])
def test_a_damaged_shard_is_named_and_made_again_alone(copy, scenes, tiny_folders, monkeypatch, harm):
    path = copy / "epoch001-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(content if harm == "flipped" else content[:-5])
    with pytest.raises(CheckpointError, match=r"epoch001-00001\.safetensors.*qskd cache"):
        read_all(copy, 1, range(6, 12))
    names = written(monkeypatch)
    qskd.cache_teacher(**cache_options(copy, scenes, tiny_folders, epochs=2))
    assert names == ["epoch001-00001"]
    assert lessons.TeacherCache.open(copy).lessons.read(1, 7)["content"].tolist() == [64, 64]


def test_records_do_not_depend_on_how_many_images_the_teacher_saw_at_once(kept, scenes, tiny_folders, tmp_path):
    folder = tmp_path / "one"
    qskd.cache_teacher(**cache_options(folder, scenes, tiny_folders, batch_size=1))
    one, many = lessons.TeacherCache.open(folder), lessons.TeacherCache.open(kept.folder)
    for position in range(16):
        expected = one.lessons.read(0, position)
        for name, tensor in many.lessons.read(0, position).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4)


CHANGES = {
    "flip": ({"flip": 0.1}, {}, "--flip 0.5"),
    "crop": ({"crop": 0.0}, {}, "--crop 0.5"),
    "photometric": ({"photometric": 1.0}, {}, "--photometric 0.5"),
    "zoom_out": ({"zoom_out": 0.5}, {}, "--zoom_out 0.0"),
    "selection.cap": ({}, {"selection.cap": 3}, "--selection_cap 10"),
    "selection.select": ({}, {"selection.select": "positives"}, "--selection_select groups"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_is_named_with_both_values_and_what_to_do(kept, scenes, name):
    data_changes, method, advice = CHANGES[name]
    data = DataOptions(data=str(scenes), **data_changes)
    settings = resolve("qskd", method)
    pair = PairOptions(teacher_cache=str(kept.folder))
    value = str(data_changes.get(name, method.get(name)))
    with pytest.raises(CheckpointError) as caught:
        open_recorded(pair, building.open_splits(data), data, settings, None)
    assert f"{name}: the cache has" in str(caught.value)
    assert f"this run {value}; give {advice}" in str(caught.value)


def test_a_teacher_of_another_precision_than_the_student_is_told_of(kept, scenes):
    data = DataOptions(data=str(scenes))
    pair = PairOptions(teacher_cache=str(kept.folder))
    teacher = open_recorded(pair, building.open_splits(data), data, resolve("qskd"), None)
    assert teacher.notes(is_half=False) == []
    assert "answered in float32" in teacher.notes(is_half=True)[0]


def test_weights_of_losses_may_differ(kept, scenes):
    data = DataOptions(data=str(scenes))
    settings = resolve("qskd", {"lapd.weight": 3.0, "agfd.norm": "area", "lapd.scope": "image"})
    open_recorded(PairOptions(teacher_cache=str(kept.folder)), building.open_splits(data), data, settings, None)


def test_other_data_another_teacher_or_size_are_refused(kept, scenes, tiny_folders, tmp_path):
    def fewer(content):
        content["annotations"].pop()

    other = edited(scenes, tmp_path / "data", fewer, "train")
    with pytest.raises(CheckpointError, match="training data: the cache has"):
        qskd.distill(**run_options(tmp_path / "a", other, tiny_folders, teacher_cache=kept.folder))
    given = {"teacher_cache": kept.folder, "teacher": tiny_folders["detr_teacher"]}
    with pytest.raises(CheckpointError, match="teacher: the cache has"):
        qskd.distill(**run_options(tmp_path / "b", scenes, tiny_folders, **given))
    with pytest.raises(CheckpointError, match=r"image size: the cache has \[64\], this run \[96\]; give --image"):
        qskd.distill(**run_options(tmp_path / "c", scenes, tiny_folders, teacher_cache=kept.folder, image_size=96))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"teacher_max_image_size": 96}, ConfigError, "give the shortest with --teacher_image_size"),
        ({"teacher_box_frame": "canvas"}, CheckpointError, "the cache has content.*give --teacher_box_frame content"),
        (
            {"teacher_image_size": 96},
            CheckpointError,
            r"teacher image size: the cache has \[64\], this run \[96\]; give --teacher_image_size 64",
        ),
    ],
)
def test_options_of_an_absent_teacher_are_looked_at(kept, scenes, tiny_folders, tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        qskd.distill(**run_options(tmp_path / "run", scenes, tiny_folders, teacher_cache=kept.folder, **given))


def test_a_run_without_validation_data_may_learn_from_any_cache(kept, scenes):
    data = DataOptions(data=str(scenes))
    splits = replace(building.open_splits(data), val=None)
    open_recorded(PairOptions(teacher_cache=str(kept.folder)), splits, data, resolve("qskd"), None)


def test_image_files_that_have_changed_are_refused(kept, scenes, tmp_path):
    other = Path(shutil.copytree(scenes, tmp_path / "data"))
    data = DataOptions(data=str(other))
    pair, settings = PairOptions(teacher_cache=str(kept.folder)), resolve("qskd")
    open_recorded(pair, building.open_splits(data), data, settings, None)
    splits = building.open_splits(data)
    path = splits.train.images[3].path
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match=r"training images: the cache has .*their files have changed"):
        open_recorded(pair, splits, data, settings, None)


def test_a_run_that_learns_nothing_from_the_cache_sees_the_images_that_were_cached(tmp_path, tiny_folders):
    """Coarse noise, which looks otherwise where it is made at the student's size and not at the teacher's."""
    noisy = tmp_path / "noisy"
    draw_dataset(noisy, train=4, val=2, size=256, seed=3)
    for path in noisy.rglob("*.jpg"):
        noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((256, 256), Image.Resampling.NEAREST).save(path, quality=95)
    own = {"image_size": 32, "teacher_image_size": 256}
    cache = qskd.cache_teacher(**cache_options(tmp_path / "cache", noisy, tiny_folders, **own))
    for method in ("qskd", "none"):
        given = run_options(tmp_path / method, noisy, tiny_folders, teacher_cache=cache.folder, image_size=32)
        assert qskd.distill(**given, method=method).metrics is not None


def test_augmentation_that_draws_other_colours_is_refused(copy, scenes, tiny_folders, tmp_path, monkeypatch):
    drawn = transforms.colour_matrix
    monkeypatch.setattr(transforms, "colour_matrix", lambda augment, rng: 0.8 * drawn(augment, rng))
    with pytest.raises(CheckpointError, match="of images that look otherwise"):
        qskd.distill(**run_options(tmp_path / "run", scenes, tiny_folders, teacher_cache=copy))
    with pytest.raises(CheckpointError, match="of images that look otherwise"):
        qskd.cache_teacher(**cache_options(copy, scenes, tiny_folders, epochs=3))


def test_images_that_are_no_files_are_known_by_their_bytes():
    def key(*blobs):
        records = [SimpleNamespace(blob=lambda content=content: content) for content in blobs]
        images = type("Images", (list,), {"sizes": np.full((len(blobs), 2), 64)})(records)
        return images_key(SimpleNamespace(images=images))

    assert key(b"one", b"two") == key(b"ONE", b"TWO") != key(b"one", b"three")


@pytest.mark.slow
def test_a_run_goes_on_with_its_cache_and_not_without(kept, scenes, tiny_folders, tmp_path):
    def run(folder, **options):
        given = {"teacher_cache": kept.folder, "save_strategy": "steps", "save_steps": 5} | options
        return qskd.distill(**run_options(tmp_path / folder, scenes, tiny_folders, **given))

    whole = run("whole", max_steps=9)  # into a third epoch, the replay of the first
    cut = Path(shutil.copytree(whole.folder, tmp_path / "cut"))
    shutil.rmtree(cut / "checkpoints" / "checkpoint-9")
    live = {"teacher_cache": None, "teacher": tiny_folders["rt_detr_teacher"]}
    with pytest.raises(CheckpointError, match="its cached epochs is 2, this run's is None"):
        run("cut", max_steps=9, resume_from_checkpoint="last", **live)
    again = run("cut", max_steps=9, resume_from_checkpoint="last")
    assert losses(again.folder)[-4:] == losses(whole.folder)[-4:]


def test_a_run_reads_no_more_than_its_method_needs(kept, scenes, tiny_folders, tmp_path):
    given = {"teacher_cache": kept.folder, "method": "predictions", "max_steps": 1}
    data, pair = DataOptions(data=str(scenes)), PairOptions(teacher_cache=str(kept.folder))
    splits = building.open_splits(data)
    fields = {
        method: open_recorded(pair, splits, data, resolve(method), None).cache.lessons.fields
        for method in ("predictions", "unmasked_features", "qskd")
    }
    assert fields["predictions"] == ("content", "objects", "query", "role", "owner", "giou", "boxes", "logits", "match")
    maps = tuple(f"memory.{level}" for level in range(3))
    assert fields["unmasked_features"] == fields["predictions"] + maps
    assert fields["qskd"] == fields["predictions"] + (*maps, "mass", "peak")
    assert losses(qskd.distill(**run_options(tmp_path / "run", scenes, tiny_folders, **given)).folder)


def test_a_cache_without_features_serves_no_method_that_needs_them(scenes, tiny_folders, tmp_path):
    folder = tmp_path / "lessons"
    qskd.cache_teacher(**cache_options(folder, scenes, tiny_folders, method="predictions"))
    assert not any(name.startswith("memory") for name in lessons.TeacherCache.open(folder).content.fields)
    with pytest.raises(CheckpointError, match="holds no cross-attention and no encoder memory"):
        qskd.distill(**run_options(tmp_path / "run", scenes, tiny_folders, teacher_cache=folder))


def test_a_cache_that_holds_more_than_a_method_needs_is_added_to_with_all_that_it_holds(
    copy, scenes, tiny_folders, small_shards
):
    qskd.cache_teacher(**cache_options(copy, scenes, tiny_folders, epochs=3, method="predictions"))
    cache = lessons.TeacherCache.open(copy)
    assert sorted(cache.lessons.read(2, 7)) == sorted(cache.lessons.read(0, 7))
    assert "memory.0" in cache.content.fields


def test_a_shard_that_lacks_fields_is_made_again(copy, scenes, tiny_folders, monkeypatch):
    whole = lessons.TeacherCache.open(copy).lessons
    fields = [field for field in whole.fields if field != "mass"]
    poor = {position: {field: whole.read(1, position)[field] for field in fields} for position in range(6, 12)}
    write_shard(copy, "epoch001-00001", poor)
    names = written(monkeypatch)
    qskd.cache_teacher(**cache_options(copy, scenes, tiny_folders, epochs=2))
    assert names == ["epoch001-00001"]


def test_the_first_process_waits_for_what_the_others_look_at(copy, scenes, tiny_folders, monkeypatch):
    options = cache_options(copy, scenes, tiny_folders, epochs=2)
    path = copy / "epoch001-00000.safetensors"  # the second one's
    path.write_bytes(path.read_bytes()[:-5])
    monkeypatch.setenv("WORLD_SIZE", "2")
    meetings = []

    def meet():
        meetings.append(1)
        if len(meetings) == 2:
            monkeypatch.setenv("RANK", "1")
            qskd.cache_teacher(**options)  # what another process does until it is there, too

    monkeypatch.setattr(caching_pass.processes, "meet", meet)
    monkeypatch.setenv("RANK", "0")
    qskd.cache_teacher(**options)
    assert len(meetings) == 4
    assert lessons.TeacherCache.open(copy).lessons.read(1, 2)["content"].tolist() == [64, 64]


def test_a_process_whose_folder_is_another_one_says_so(scenes, tiny_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(caching_pass, "_LOOKS", 1)
    monkeypatch.setattr(caching_pass, "_WAIT", 0.0)
    monkeypatch.setattr(caching_pass.processes, "meet", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError, match="a folder that all machines share"):
        qskd.cache_teacher(**cache_options(tmp_path / "lessons", scenes, tiny_folders))


def test_a_folder_of_something_else_is_not_written_to(copy, scenes, tiny_folders, tmp_path):
    with pytest.raises(CheckpointError, match=r"flip: the cache has 0\.5, this run 0\.25"):
        qskd.cache_teacher(**cache_options(copy, scenes, tiny_folders, flip=0.25))
    with pytest.raises(ConfigError, match="cache_dtype"):
        qskd.cache_teacher(**cache_options(copy, scenes, tiny_folders, cache_dtype="float16"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds other files"):
        qskd.cache_teacher(**cache_options(tmp_path / "other", scenes, tiny_folders))


def test_too_little_room_is_refused_before_the_pass(scenes, tiny_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(caching_pass.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"needs .* more in .*, where 1 KiB are free"):
        qskd.cache_teacher(**cache_options(tmp_path / "lessons", scenes, tiny_folders))
    assert "an image in float32" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "lessons").iterdir()] == [".lock"]


def test_the_estimate_is_near_what_is_written(kept):
    cache = lessons.TeacherCache.open(kept.folder)
    records = [cache.lessons.read(0, position) for position in range(16)]
    exact = 2 * sum(caching_pass.bytes_of(record) for record in records)
    assert exact < kept.bytes < 1.2 * exact


def test_images_without_objects_and_classes_that_the_teacher_lacks(scenes, tiny_folders, tmp_path):
    def change(content):
        content["categories"][0]["name"] = "blob"
        half = [image["id"] for image in content["images"]][::2]
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] not in half]

    data = edited(scenes, tmp_path / "data", change, "train", "val")
    qskd.cache_teacher(**cache_options(tmp_path / "lessons", data, tiny_folders))
    given = {"max_steps": 3, "teacher": tiny_folders["rt_detr_teacher"]}
    live = qskd.distill(**run_options(tmp_path / "live", data, tiny_folders, **given))
    given = {"max_steps": 3, "teacher_cache": tmp_path / "lessons"}
    run = qskd.distill(**run_options(tmp_path / "run", data, tiny_folders, **given))
    assert losses(run.folder) == pytest.approx(losses(live.folder), rel=1e-5)


def test_what_no_cache_can_do_is_refused(kept, scenes, tiny_folders, tmp_path):
    given = {"teacher_cache": kept.folder, "unlabeled": scenes}
    with pytest.raises(ConfigError, match="leave out --unlabeled"):
        qskd.distill(**run_options(tmp_path / "a", scenes, tiny_folders, **given))
    given = {"teacher_cache": kept.folder, "student": None, "student_decoder_layers": 1}
    with pytest.raises(ConfigError, match="give --teacher beside --teacher_cache"):
        qskd.distill(**run_options(tmp_path / "b", scenes, tiny_folders, **given))
    given = {"teacher_cache": kept.folder, "teacher_precision": "bfloat16"}
    with pytest.raises(ConfigError, match="--teacher_precision bfloat16 is about a teacher that runs"):
        qskd.distill(**run_options(tmp_path / "c", scenes, tiny_folders, **given))


def test_the_batch_says_which_augmentation_of_which_image_it_holds(scenes):
    data = dataset(scenes, "train")
    data.set_epoch(2)
    batch = collate([data[5], data[1]])
    assert batch.variations == batch.to("cpu").variations == batch.for_teacher().variations == ((2, 5), (2, 1))


def test_the_commands_work_together(scenes, tmp_path, capsys):
    teacher = Path(qskd.__file__).parent / "assets" / "demo_teacher"
    folder = str(tmp_path / "lessons")
    both = ["--data", str(scenes), "--image-size", "64", "--use_cpu"]
    assert main(["cache", "--teacher", str(teacher), "--output-dir", folder, *both]) == 0
    said = capsys.readouterr().out
    assert "16/16 images" in said
    assert f"--teacher_cache {folder}" in said
    run = ["distill", "--teacher", str(teacher), "--student_decoder_layers", "1", "--teacher-cache", folder, *both]
    assert main([*run, "--output-dir", str(tmp_path / "run"), "--max_steps", "1"]) == 0
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["teacher"]["metrics"]["AP"] > 0.05
