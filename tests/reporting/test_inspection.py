import json
import re

import numpy as np
import pytest

from builders_inspection import CLASSES, scene_and_numbers, subject
from builders_reports import EVIL, Page
from qskd.reporting.inspection import write_inspection
from qskd.reporting.query_words import capped, close_up_words, counted, sentences
from qskd.selection.groups import Role


def write(folder, scenes=None, numbers=None, **changes):
    scene, made = scene_and_numbers()
    return write_inspection(folder, subject(**changes), numbers or made, scenes if scenes is not None else [scene])


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    scene, numbers = scene_and_numbers(name=EVIL, class_names=(EVIL,) * len(CLASSES))
    names = dict(teacher=EVIL, family=EVIL, student=EVIL, method=EVIL, settings={EVIL: EVIL}, notes=[EVIL])
    return write_inspection(tmp_path_factory.mktemp("evil"), subject(**names), numbers, [scene])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of the scene as it is, and its text."""
    files = write(tmp_path_factory.mktemp("page"))
    return files, files.html.read_text("utf-8")


@pytest.fixture
def no_charts(monkeypatch):
    """Charts take a second, and have tests of their own."""
    for name in ("layer_figures", "depth_figures"):
        monkeypatch.setattr(f"qskd.reporting.inspection.{name}", lambda *arguments: [])
    monkeypatch.setattr("qskd.reporting.inspection.save_png", lambda numbers, threshold, path: path.touch())


def test_names_cannot_break_out_of_the_page(evil):
    text = evil.html.read_text("utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert " ".join(EVIL.split()) in " ".join("".join(page.texts).split())


def test_the_page_asks_nothing_of_the_network(evil):
    text = evil.html.read_text("utf-8")
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in Page(text).addresses)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://", text)


def test_every_link_and_label_has_its_place_and_ids_are_unique(evil):
    page = Page(evil.html.read_text("utf-8"))
    assert len(set(page.ids)) == len(page.ids)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)


def test_layers_are_chosen_with_the_keyboard_and_the_last_is_the_default(page):
    _, text = page
    radios = re.findall(r'<input type="radio" name="layer" id="layer-(\d)"( checked)?>', text)
    assert radios == [("1", ""), ("2", " checked")]
    for layer in "12":
        assert f"body:has(#layer-{layer}:checked) .at-{layer}" in text
        assert f'class="at at-{layer}"' in text


def test_every_picture_says_what_it_shows(page):
    _, text = page
    images = re.findall(r'<img [^>]*alt="([^"]*)"', text)
    # Of both layers queries, a close-up and attention; attention of all, mask; pairs of the last.
    assert len(images) == 2 * 3 + 2 + 1
    assert all(images)
    assert "No student layer learns from this one." in text


def test_captions_count_the_roles(page):
    scene, _ = scene_and_numbers()
    _, text = page
    for layer in range(2):
        counts = [int((scene.role[layer] == role).sum()) for role in (Role.POSITIVE, Role.HARD_NEGATIVE)]
        words = f"{counts[0]} positives, {counts[1]} hard negative{'s' if counts[1] != 1 else ''}, "
        assert counted(scene, layer).startswith(words)
        assert f"Layer {layer + 1}. {words}" in text


def test_the_file_holds_every_query_and_every_pair(page):
    scene, numbers = scene_and_numbers()
    content = json.loads(page[0].json.read_text("utf-8"))
    image = content["images"][0]
    assert [len(layer["role"]) for layer in image["layers"]] == [12, 12]
    names = [Role(role).name.lower() for role in scene.role[1].tolist()]
    assert image["layers"][1]["role"] == names
    assert image["layers"][1]["giou"] == pytest.approx(scene.giou[1].tolist(), abs=1e-4)
    assert image["pairs"][0]["role"] == ["positive", "hard negative", "hard negative"]
    assert image["pairs"][0]["teacher_layer"] == 2
    assert content["statistics"] == json.loads(json.dumps(numbers.as_dict()))


@pytest.mark.usefixtures("no_charts")
def test_pictures_are_written_and_those_of_an_earlier_page_removed(tmp_path):
    scene, numbers = scene_and_numbers()
    write(tmp_path, [scene, scene], numbers)
    files = write(tmp_path, [scene], numbers)
    names = sorted(path.name for path in files.pictures.iterdir())
    layers = [f"image_1_layer_{n}_{kind}.png" for n in (1, 2) for kind in ("attention", "close_up", "queries")]
    expected = ["image_1_agfd_mask.png", "image_1_attention.png", *layers, "image_1_layer_2_pairs.png"]
    assert names == sorted([*expected, "statistics.png"])


@pytest.mark.usefixtures("no_charts")
def test_an_image_without_objects_is_shown_with_a_reason(tmp_path):
    scene, numbers = scene_and_numbers(count=0, with_pairs=False)
    text = write(tmp_path, [scene], numbers).html.read_text("utf-8")
    assert "No objects: all queries are easy negatives" in text
    assert "0 positives, 0 hard negatives, 12 easy negatives" in text
    assert list(sentences(numbers)) == ["The last decoder layer has no hard negatives here."]


@pytest.mark.usefixtures("no_charts")
def test_no_images_and_no_student_are_a_page_too(tmp_path):
    scene, _ = scene_and_numbers(with_pairs=False, mask=())
    text = write(tmp_path, [scene], student=None).html.read_text("utf-8")
    assert "LAPD" not in text
    assert "AGFD mask" not in text
    assert "No images were asked for." in write(tmp_path, []).html.read_text("utf-8")


@pytest.mark.usefixtures("no_charts")
def test_predictions_that_are_no_numbers_are_drawn_and_written_all_the_same(tmp_path):
    scene, _ = scene_and_numbers()
    boxes = scene.boxes.copy()
    boxes[1, :3] = (np.nan, np.inf, 1.0, -np.inf)
    broken, numbers = scene_and_numbers(boxes=boxes)
    content = json.loads(write(tmp_path, [broken], numbers).json.read_text("utf-8"))
    assert content["images"][0]["layers"][1]["box"][0] == [None, None, 1.0, None]


def test_the_close_up_tells_overlap_class_and_score():
    scene, _ = scene_and_numbers()
    number = scene.most_sought
    words = close_up_words(scene, 1, number).split("\n")
    hard, positive = scene.hard_negatives(1, number), scene.positive(1, number)
    assert words[0].startswith(CLASSES[scene.labels[number]])
    assert words[1].startswith(f"positive: GIoU {scene.giou[1, positive]:.2f}")
    assert words[2].startswith(f"1: GIoU {max(scene.giou[1, hard]):.2f}, ")


def test_sentences_tell_the_last_layers_numbers():
    _, numbers = scene_and_numbers()
    text = " ".join(sentences(numbers))
    hard = numbers.layers[-1].roles[Role.HARD_NEGATIVE]
    assert f"a median GIoU of {hard.giou.median:.2f} (positives " in text
    assert f"{hard.foreground:.0%} of their attention" in text
    assert f"on average, {hard.queries / 3:.1f} hard" in text


def test_a_limit_that_cuts_off_many_is_told():
    _, numbers = scene_and_numbers()
    most = len(numbers.layers[-1].hard_per_object) - 1
    share = numbers.layers[-1].hard_per_object[most] / 3
    assert f"{share:.0%} of the objects" in capped(numbers, most)
    assert capped(numbers, most + 1) is None
    assert capped(numbers, None) is None


@pytest.mark.usefixtures("no_charts")
def test_without_labels_the_key_says_whose_objects_these_are(tmp_path):
    assert "object, detected by the teacher itself" in write(tmp_path, is_labelled=False).html.read_text("utf-8")


def test_a_page_that_cannot_be_finished_leaves_the_former_one(tmp_path, monkeypatch):
    def full(path):
        raise OSError("no room")

    files = write(tmp_path)
    before = files.html.read_bytes(), files.json.read_bytes()
    monkeypatch.setattr("qskd.files.to_disk", full)
    with pytest.raises(OSError, match="no room"):
        write(tmp_path, scenes=[])
    assert (files.html.read_bytes(), files.json.read_bytes()) == before
    assert not list(tmp_path.rglob(".*"))
