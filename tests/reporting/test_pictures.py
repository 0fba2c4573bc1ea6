import base64
import io

import numpy as np
import pytest
from PIL import Image

from qskd.evaluation.detections import Detections
from qskd.reporting.pictures import (
    Objects,
    class_colour,
    data_uri,
    detection_sheet,
    draw_objects,
    shown,
    text_font,
)


def detections(*scores):
    count = len(scores)
    boxes = np.tile(np.array([10, 10, 20, 20], np.float32), (count, 1))
    return Detections(np.array(scores, np.float32), np.arange(count), boxes)


@pytest.mark.parametrize(
    ("scores", "kept", "is_sure"),
    [
        ((0.9, 0.31, 0.29), 2, True),
        ((0.29, 0.2, 0.1, 0.05), 3, False),
        ((0.29,), 1, False),
        ((), 0, False),
    ],
)
def test_sure_detections_are_shown_or_else_the_few_best(scores, kept, is_sure):
    found = shown(detections(*scores))
    assert found.labels == tuple(range(kept))
    assert len(found.boxes) == kept
    assert found.is_sure is is_sure


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (1000, 500), (1, 300)])
def test_panels_have_the_asked_size_and_shape(size):
    panel = draw_objects(Image.new("RGB", size), Objects((), ()), (), side=100)
    assert max(panel.size) == 100
    assert panel.size[0] / panel.size[1] == pytest.approx(size[0] / size[1], rel=0.1) or min(panel.size) == 1


def test_a_box_is_drawn_in_its_colour_where_it_is():
    objects = Objects((1,) * 9, ((10, 20, 30, 40),) * 9)  # too many for tags
    pixels = np.asarray(draw_objects(Image.new("RGB", (50, 50), "white"), objects, ("a", "b"), side=100)).astype(int)
    is_coloured = (np.abs(pixels - np.array(class_colour(1))) < 3).all(-1)
    rows, columns = np.nonzero(is_coloured)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (20, 40, 60, 80)
    assert not is_coloured[50:70, 30:50].any()  # hollow


def test_the_image_itself_is_left_alone():
    image = Image.new("RGB", (50, 50), "white")
    draw_objects(image, Objects((0,), ((1, 1, 40, 40),)), ("a",))
    assert image.getcolors() == [(2500, (255, 255, 255))]


@pytest.mark.parametrize(
    "box",
    [(-50, -50, 500, 500), (5, 5, 5, 5), (30, 30, 10, 10), (49.9, 49.9, 50, 50), (-20, -20, -10, -10)],
    ids=["beyond the image", "a point", "inverted", "corner", "outside"],
)
@pytest.mark.parametrize("scores", [None, (0.5,)])
def test_any_box_and_name_can_be_drawn(box, scores):
    objects = Objects((0,), (box,), scores)
    for name in ("", "x" * 500, "two\nlines", "naïve ß Ω Ж 猫"):
        assert draw_objects(Image.new("L", (50, 50)), objects, (name,), side=64).size == (64, 64)


def test_counts_are_told_in_words():
    names = ("cat", "dog")
    assert Objects((1, 0, 1), ((0, 0, 1, 1),) * 3).counted(names) == "2 dog, 1 cat"
    assert Objects((), ()).counted(names) == "nothing"
    assert Objects((0,), ((0, 0, 1, 1),), (0.1,), is_sure=False).counted(names) == "no score of 0.3; best: 1 cat"


def test_class_colours_differ():
    assert len({class_colour(label) for label in range(40)}) == 40


def test_a_sheet_lays_panels_out_under_their_titles():
    red, blue = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (20, 50), "blue")
    sheet = detection_sheet([[red, blue], [blue]], ["one", "a title much longer than its column"])
    # Columns of 40 and 20, rows of 50 and 50, gaps of 8, 28 for the titles.
    assert sheet.size == (8 + 40 + 8 + 20 + 8, 28 + 8 + 50 + 8 + 50 + 8)
    assert sheet.getpixel((8 + 20, 36 + 25)) == (255, 0, 0)
    assert sheet.getpixel((56 + 10, 36 + 25)) == (0, 0, 255)
    assert sheet.getpixel((8 + 20, 94 + 25)) == (0, 0, 255)
    assert sheet.getpixel((56 + 10, 94 + 25)) == (255, 255, 255)
    assert np.asarray(sheet)[:36].min() < 128  # the titles


@pytest.mark.parametrize(("rows", "titles"), [([], ["a"]), ([[Image.new("RGB", (1, 1))] * 2], ["a"]), ([[]], [])])
def test_a_sheet_without_rows_or_titles_is_refused(rows, titles):
    with pytest.raises(ValueError, match="title for each column"):
        detection_sheet(rows, titles)


def test_a_picture_travels_inside_its_address():
    head, _, body = data_uri(Image.new("RGB", (9, 5), "red")).partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(body))).size == (9, 5)


def test_the_font_scales():
    assert text_font(20).getlength("wide") > text_font(10).getlength("wide")
