"""Whole inspections of tiny teachers on drawn scenes."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

import builders
import qskd
from builders_runs import NAMES, edited, without_objects
from qskd.data.batch import collate
from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError, ConfigError, DataError, LabelMapError
from qskd.labels import LabelMap
from qskd.losses.attention_guided_feature import query_weights
from qskd.losses.presets import build_terms, resolve
from qskd.losses.term import StudentAnswer
from qskd.models.families import adapter_class
from qskd.models.loading import as_teacher
from qskd.models.processors import save_model
from qskd.runs import building, inspecting
from qskd.runs.inspected_images import LabelledImages, UnlabelledImages, detected_objects
from qskd.runs.inspected_scenes import Apprentice, SceneReader
from qskd.runs.inspecting import InspectOptions, inspect
from qskd.runs.options import MethodOptions, PairOptions, SourceOptions
from qskd.selection.assignment import match_to_targets
from qskd.selection.groups import GroupQuerySelection, Role
from qskd.teacher import TeacherSide

SIZE = ImageSize(square=64)
LARGER = 96  # torch refuses a group norm over the single cell that tiny Deformable DETRs have at 64 pixels


@pytest.fixture
def no_charts(monkeypatch):
    """Charts take a second, and have tests of their own."""
    for name in ("layer_figures", "depth_figures"):
        monkeypatch.setattr(f"qskd.reporting.inspection.{name}", lambda *arguments: [])
    monkeypatch.setattr("qskd.reporting.inspection.save_png", lambda numbers, threshold, path: path.touch())


def look(folder, teacher, scenes=None, *, method=None, image_size=64, max_image_size=None, **options):
    names = ("student", "student_decoder_layers", "teacher_image_size")
    pair = {name: options.pop(name) for name in names if name in options}
    return inspect(
        InspectOptions(output_dir=str(folder), **({"images": 1, "statistics_images": 4} | options)),
        PairOptions(teacher=str(teacher), **pair),
        SourceOptions(
            data=None if scenes is None else str(scenes), image_size=image_size, max_image_size=max_image_size
        ),
        MethodOptions(**(method or {})),
    )


def content_of(made):
    return json.loads(made.files.json.read_text("utf-8"))


def opened(folder):
    return as_teacher(building.open_model(str(folder), None, box_frame="content"))


def lesson_on(scenes, teacher, position, size=SIZE):
    """What distilling has the teacher say about one validation image."""
    index = building.open_split(SourceOptions(data=str(scenes)), "val")
    batch = collate([building.evaluation_dataset(index, size)[position]])
    label_map = LabelMap.between(teacher.id2label, index.class_names)
    return batch, TeacherSide(teacher, label_map, GroupQuerySelection(), {}).read(batch, capture_attention=True)


@pytest.mark.slow
@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("name", list(builders.MODELS))
def test_every_family_gets_a_page(tmp_path, scenes, name):
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {label: key for key, label in enumerate(NAMES)}}
    model = builders.MODELS[name](num_labels=len(NAMES), **labels)
    adapter = adapter_class(model.config.model_type)(model)
    folder = save_model(adapter, tmp_path / "teacher", size=SIZE)
    edge = LARGER if name.startswith("deformable") else 64
    made = look(tmp_path / "out", folder, scenes, image_size=edge)
    text, content = made.files.html.read_text("utf-8"), content_of(made)
    assert content["family"] == model.config.model_type
    image = content["images"][0]
    teacher = opened(folder)
    assert len(image["layers"]) == teacher.num_layers
    index = building.open_split(SourceOptions(data=str(scenes)), "val")
    position = list(index.images.file_names).index(image["name"])
    _, teaching = lesson_on(scenes, teacher, position, ImageSize(square=edge))
    role = teaching.lesson.groups.role[:, 0]
    for layer, told in enumerate(image["layers"]):
        assert told["counts"] == {role_.name.lower(): int((role[layer] == role_).sum()) for role_ in Role}
        assert f"Layer {layer + 1}. {told['counts']['positive']} positive" in text
    assert all(one["roles"]["positive"]["attention_within_objects"] > 0 for one in content["statistics"]["layers"])


@pytest.mark.slow
@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("student", ["rt_detr_student", "deformable_student", "detr_student"])
def test_pairs_are_those_of_the_loss_for_a_student_of_any_family(tmp_path, scenes, tiny_folders, student):
    folder = tiny_folders["rt_detr_teacher"]
    made = look(tmp_path, folder, scenes, student=str(tiny_folders[student]), image_size=LARGER)
    image = content_of(made)["images"][0]
    index = building.open_split(SourceOptions(data=str(scenes)), "val")
    teacher, pupil = opened(folder), opened(tiny_folders[student])
    position = list(index.images.file_names).index(image["name"])
    batch, teaching = lesson_on(scenes, teacher, position, ImageSize(square=LARGER))
    settings = resolve("qskd", {"agfd.weight": 0.0})
    lapd = build_terms(settings, student=pupil, teacher=teacher)["lapd"][0]
    view = pupil.read(batch).view
    match = match_to_targets(view, batch.targets, pupil.match_costs)
    prepared = lapd.prepare(teaching.lesson)
    partner = lapd.partners(StudentAnswer(view, match), teaching.lesson, prepared)
    is_pair = (partner >= 0) & (prepared.tensors["query"] >= 0)
    assert [len(layer["teacher_query"]) for layer in image["pairs"]] == is_pair.sum((1, 2)).tolist()
    for layer, told in enumerate(image["pairs"]):
        assert told["student_query"] == partner[layer, 0][is_pair[layer, 0]].tolist()
        objects = batch.targets.counts[0]
        assert told["role"][:objects] == ["positive"] * objects
        assert set(told["role"][objects:]) <= {"hard negative"}
        matched = [int(match[layer, 0, number]) for number in told["object"][:objects]]
        assert told["student_query"][:objects] == matched
        roles = image["layers"][told["teacher_layer"] - 1]["role"]
        assert [roles[query] for query in told["teacher_query"]] == [one.replace(" ", "_") for one in told["role"]]


def reader_of(scenes, teacher, agfd=None, apprentice=None):
    index = building.open_split(SourceOptions(data=str(scenes)), "val")
    images = LabelledImages.of(index, SIZE, SIZE)
    side = TeacherSide(teacher, LabelMap.between(teacher.id2label, index.class_names), GroupQuerySelection(), {})
    return SceneReader(side, images, agfd, apprentice), images


def test_a_scene_holds_the_attention_and_the_mask_of_the_losses(scenes, tiny_folders):
    teacher = opened(tiny_folders["rt_detr_teacher"])
    agfd = build_terms(resolve("features"), student=teacher, teacher=teacher)["agfd"][0]
    reader, images = reader_of(scenes, teacher, agfd)
    position = images.chosen(1)[0]
    scene = reader.read(position)
    _, teaching = lesson_on(scenes, teacher, position)
    lesson = teaching.lesson
    mass = lesson.view.attention_mass(query_weights(lesson.groups))[:, 0]
    told = torch.cat([torch.from_numpy(level).flatten(1) for level in scene.attention], dim=1)
    torch.testing.assert_close(told, mass)
    mask = torch.cat([torch.from_numpy(level).flatten() for level in scene.mask])
    torch.testing.assert_close(mask, agfd.prepare(lesson).tensors["weights"][0])
    assert [level.shape[-2:] for level in scene.attention] == [level.shape[-2:] for level in lesson.view.memory]


def test_what_the_teacher_does_not_know_is_set_apart(tmp_path, scenes, tiny_folders):
    def rename(content):
        content["categories"][0]["name"] = "gnu"

    changed = edited(scenes, tmp_path / "scenes", rename, "train", "val")
    teacher = opened(tiny_folders["rt_detr_teacher"])
    student = opened(tiny_folders["detr_student"])
    lapd = build_terms(resolve("predictions"), student=student, teacher=teacher)["lapd"][0]
    reader, images = reader_of(changed, teacher, apprentice=Apprentice(student, lapd))
    total = unknown = 0
    for position in range(len(images)):
        scene, labels = reader.read(position), images.index.labels(position)
        foreign = images.class_names.index("gnu")
        assert len(scene.unknown) == int((labels == foreign).sum())
        assert scene.labels.tolist() == labels[labels != foreign].tolist()
        total, unknown = total + len(labels), unknown + len(scene.unknown)
        for pairs in scene.pairs:
            assert pairs.counts[0] == len(scene.objects)
    assert 0 < unknown < total


@pytest.mark.usefixtures("no_charts")
def test_the_options_of_the_selection_change_what_is_seen(tmp_path, scenes, tiny_folders):
    teacher = tiny_folders["rt_detr_teacher"]

    def hard(**method):
        numbers = look(tmp_path, teacher, scenes, method=method, images=0).numbers
        return numbers.layers[-1].roles[Role.HARD_NEGATIVE].queries

    usual = hard()
    assert hard(selection_threshold="0.3") < usual
    assert hard(selection_cap="1") <= usual
    assert hard(method="positives") == 0
    everything = look(tmp_path, teacher, scenes, method={"method": "all_queries"}, images=0)
    assert everything.numbers.layers[-1].roles[Role.EASY_NEGATIVE].queries == 0
    assert content_of(everything)["settings"]["selection.select"] == "all"


@pytest.mark.usefixtures("no_charts")
def test_statistics_are_over_so_many_images(tmp_path, scenes, tiny_folders):
    teacher = tiny_folders["rt_detr_teacher"]
    assert look(tmp_path, teacher, scenes, images=0, statistics_images=3, batch_size=2).numbers.images == 3
    assert look(tmp_path, teacher, scenes, images=0, statistics_images=0, split="train").numbers.images == 16


@pytest.mark.usefixtures("no_charts")
def test_a_method_without_parts_says_why_they_are_not_shown(tmp_path, scenes, tiny_folders):
    student = str(tiny_folders["deformable_student"])
    made = look(tmp_path, tiny_folders["rt_detr_teacher"], scenes, student=student, method={"method": "none"})
    notes = " ".join(content_of(made)["notes"])
    assert "no attention mask" in notes
    assert "LAPD is off" in notes
    assert content_of(made)["images"][0]["pairs"] == []


@pytest.mark.usefixtures("no_charts")
def test_a_student_may_be_derived_and_see_images_of_another_size(tmp_path, scenes, tiny_folders):
    made = look(tmp_path, tiny_folders["rt_detr_teacher"], scenes, student_decoder_layers=1, teacher_image_size=96)
    pairs = content_of(made)["images"][0]["pairs"]
    assert [(one["student_layer"], one["teacher_layer"]) for one in pairs] == [(1, 3)]


@pytest.mark.usefixtures("no_charts")
def test_images_may_keep_their_shape(tmp_path, scenes, tiny_folders):
    def stretch(content):
        for image in content["images"][::2]:
            image["width"] = 128

    wide = edited(scenes, tmp_path / "scenes", stretch, "val")
    (wide / "images").unlink()
    (wide / "images" / "val").mkdir(parents=True)
    for image in json.loads((wide / "annotations" / "instances_val.json").read_text())["images"]:
        with Image.open(scenes / "images" / "val" / image["file_name"]) as picture:
            picture.resize((image["width"], image["height"])).save(wide / "images" / "val" / image["file_name"])
    padded, alone = (
        look(tmp_path / f"{size}", tiny_folders["detr_teacher"], wide, max_image_size=128, batch_size=size).numbers
        for size in (3, 1)
    )
    assert padded.object_area == pytest.approx(alone.object_area)
    for one, other in zip(padded.layers, alone.layers, strict=True):
        positive, same = one.roles[Role.POSITIVE], other.roles[Role.POSITIVE]
        assert positive.queries == same.queries
        # Beside padding, a network answers a little differently.
        assert positive.foreground == pytest.approx(same.foreground, abs=0.1)


@pytest.mark.usefixtures("no_charts")
def test_image_files_without_labels_take_the_teachers_word(tmp_path, scenes, tiny_folders):
    teacher = opened(tiny_folders["rt_detr_teacher"])
    files = sorted((scenes / "images" / "val").iterdir())[:2]
    images = UnlabelledImages(files, (SIZE, SIZE), teacher, 0.0)
    batch = images.batch([0, 1])
    scores = teacher.read(batch).view.scores()[-1].amax(-1)
    threshold = float(scores.flatten().sort().values[-3])
    found = detected_objects(teacher, batch, threshold)
    assert found.counts == tuple((scores >= threshold).sum(1).tolist())
    made = look(tmp_path, tiny_folders["rt_detr_teacher"], image=[str(file) for file in files], threshold=threshold)
    assert made.numbers.objects == 3
    text = made.files.html.read_text("utf-8")
    assert "There is no ground truth" in text
    assert files[0].name in text
    positives = made.numbers.layers[-1].roles[Role.POSITIVE]
    assert positives.giou.mean == pytest.approx(1.0, abs=1e-4)


@pytest.mark.usefixtures("no_charts")
def test_a_threshold_that_nothing_reaches_gives_a_page_without_objects(tmp_path, scenes, tiny_folders):
    file = next((scenes / "images" / "val").iterdir())
    made = look(tmp_path, tiny_folders["detr_teacher"], image=[str(file)], threshold=1.0)
    assert made.numbers.objects == 0
    assert "No objects" in made.files.html.read_text("utf-8")


@pytest.mark.usefixtures("no_charts")
def test_data_without_objects_is_a_page_too(tmp_path, scenes, tiny_folders):
    empty = edited(scenes, tmp_path / "scenes", without_objects, "train", "val")
    made = look(tmp_path / "out", tiny_folders["deformable_teacher"], empty, image_size=LARGER)
    assert made.numbers.images_with_objects == 0


@pytest.mark.usefixtures("no_charts")
def test_the_same_images_give_the_same_page(tmp_path, scenes, tiny_folders):
    pages = [
        look(tmp_path / name, tiny_folders["rt_detr_teacher"], scenes, student_decoder_layers=2).files.html.read_bytes()
        for name in "ab"
    ]
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({}, ConfigError, "No images: give --data DIR"),
        ({"image": ["{scenes}/none.png"]}, DataError, "there is no such image file"),
        ({"image": ["{scenes}/annotations/instances_val.json"]}, DataError, "not an image file"),
        ({"image": ["{scenes}"]}, DataError, "is a folder"),
        ({"image": []}, ConfigError, "at least one image file"),
        ({"image": ["{scenes}"], "scenes": "{scenes}"}, ConfigError, "not both"),
        ({"scenes": "{scenes}", "split": "test"}, DataError, "has no split 'test'"),
        ({"scenes": "{scenes}", "images": -1}, ConfigError, "--images is -1"),
        ({"scenes": "{scenes}", "batch_size": 0}, ConfigError, "--batch_size is 0"),
        ({"scenes": "{scenes}", "statistics_images": -1}, ConfigError, "--statistics_images is -1"),
        ({"scenes": "{scenes}", "threshold": 2.0}, ConfigError, "--threshold is 2.0"),
        ({"scenes": "{scenes}", "method": {"method": "magic"}}, ConfigError, "There is no method 'magic'"),
        ({"scenes": "{scenes}", "method": {"selection_threshold": "7"}}, ConfigError, "a GIoU lies in"),
        ({"scenes": "{scenes}", "image_size": 50}, ConfigError, "not a multiple of 32"),
        ({"scenes": "{scenes}", "student": "nowhere/at/all"}, CheckpointError, "nowhere/at/all"),
        ({"scenes": "{scenes}", "student": "x", "student_decoder_layers": 1}, ConfigError, "not both"),
    ],
)
def test_bad_input_is_an_error_with_a_reason(tmp_path, scenes, tiny_folders, options, error, told):
    def filled(value):
        return value.format(scenes=scenes) if isinstance(value, str) else value

    given = {
        key: [filled(one) for one in value] if isinstance(value, list) else filled(value)
        for key, value in options.items()
    }
    with pytest.raises(error, match=re.escape(told)):
        look(tmp_path / "out", tiny_folders["rt_detr_teacher"], **given)
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_classes_is_refused(tmp_path, scenes, tiny_folders):
    def rename(content):
        for number, category in enumerate(content["categories"]):
            category["name"] = f"animal {number}"

    changed = edited(scenes, tmp_path / "scenes", rename, "train", "val")
    with pytest.raises(LabelMapError, match="no class name in common"):
        look(tmp_path / "out", tiny_folders["rt_detr_teacher"], changed)


def test_a_teacher_has_to_be_named_and_trained(tmp_path, scenes):
    with pytest.raises(ConfigError, match="--teacher was not given"):
        inspect(InspectOptions(), PairOptions(), SourceOptions(data=str(scenes)), MethodOptions())
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match="without weights"):
        look(tmp_path / "out", tmp_path / "a.json", scenes)


def test_an_output_folder_that_is_a_file_is_refused(tmp_path, scenes, tiny_folders):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        look(tmp_path / "out", tiny_folders["rt_detr_teacher"], scenes)


def test_views_are_not_kept(monkeypatch, tmp_path, scenes, tiny_folders):
    """Of a data set's views, at most two live at a time, whatever its length."""
    import gc
    import weakref

    alive, most = [], []
    before = TeacherSide.read

    def read(self, *arguments, **options):
        teaching = before(self, *arguments, **options)
        gc.collect()
        alive.append(weakref.ref(teaching.lesson.view.logits))
        most.append(sum(one() is not None for one in alive))
        return teaching

    monkeypatch.setattr(TeacherSide, "read", read)
    teacher = opened(tiny_folders["rt_detr_teacher"])
    _, images = reader_of(scenes, teacher)
    side = TeacherSide(teacher, LabelMap.between(teacher.id2label, images.class_names), GroupQuerySelection(), {})
    inspecting.count(side, images, InspectOptions(statistics_images=0, batch_size=1))
    assert len(most) == 6
    assert max(most) <= 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_opens_the_page_without_complaint(tmp_path, scenes, tiny_folders):
    student = str(tiny_folders["rt_detr_student"])
    made = look(tmp_path / "out", tiny_folders["rt_detr_teacher"], scenes, student=student)
    shot = tmp_path / "shot.png"
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1000,3000",
        f"--screenshot={shot}", f"file://{made.files.html}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    with Image.open(shot) as picture:
        assert picture.size == (1000, 3000)
        assert len(picture.convert("RGB").resize((100, 300)).getcolors(30000)) > 500  # the images are there


DEMO = Path(qskd.__file__).parent / "assets" / "demo_teacher"


def test_python_does_what_the_command_does(scenes, tmp_path):
    made = qskd.inspect(
        teacher=DEMO, data=scenes, images=1, output_dir=tmp_path / "page", image_size=64, selection_threshold=0.2
    )
    assert made.files.html.is_file()
    with pytest.raises(ConfigError, match=r"no option 'teecher'\. Did you mean 'teacher'"):
        qskd.inspect(teecher=DEMO)
