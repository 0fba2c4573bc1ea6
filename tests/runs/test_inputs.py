import os
import sys
from pathlib import Path

import pytest

import qskd
from qskd.errors import ConfigError
from qskd.runs.inputs import find_inputs


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(*given: Path, out: Path = Path("/nowhere")) -> list[tuple[str, str]]:
    inputs = find_inputs(given, out)
    return [(source.name, source.drawn) for source in (*inputs.images, *inputs.videos)]


def test_folders_are_searched_to_the_bottom_in_order(tmp_path):
    touch(tmp_path, "b.jpg", "a/z.PNG", "a/b/y.jpeg", "B.jpg", "notes.txt", ".hidden.jpg", ".thumbs/a.jpg", "c.mp4")
    assert found(tmp_path) == [
        ("B.jpg", "B.jpg"),
        ("a/b/y.jpeg", "a/b/y.jpeg"),
        ("a/z.PNG", "a/z.PNG"),
        ("b.jpg", "b.jpg"),
        ("c.mp4", "c.mp4"),
    ]


def test_a_file_is_taken_whatever_its_ending_and_given_twice_once(tmp_path):
    touch(tmp_path, "photo", "a.jpg")
    given = [tmp_path / "photo", tmp_path / "a.jpg", tmp_path, tmp_path / "." / "a.jpg"]
    assert found(*given) == [("photo", "photo.png"), ("a.jpg", "a.jpg")]


def test_names_are_no_patterns(tmp_path):
    touch(tmp_path, "a[1]/b*.jpg", "a1/b2.jpg", "a 1/ü?.jpg")
    assert found(tmp_path / "a[1]") == [("b*.jpg", "b*.jpg")]
    assert found(tmp_path / "a[1]" / "b*.jpg") == [("b*.jpg", "b*.jpg")]
    assert found(tmp_path / "a 1") == [("ü?.jpg", "ü?.jpg")]


def test_one_name_in_several_folders_stays_apart(tmp_path):
    touch(tmp_path, "train/images/x.jpg", "val/images/x.jpg")
    wanted = [("train/images/x.jpg",) * 2, ("val/images/x.jpg",) * 2]
    assert found(tmp_path / "train" / "images", tmp_path / "val" / "images") == wanted
    assert found(tmp_path / "train/images/x.jpg", tmp_path / "val/images/x.jpg") == wanted


def test_drawings_of_different_files_have_different_names(tmp_path):
    touch(tmp_path, "a.bmp", "a.png", "a.tif", "a.tif.png", "b.gif", "b.webp", "v.avi", "v.mov", "v.mp4", "v.MP4")
    drawn = dict(found(tmp_path))
    assert drawn["a.png"] == "a.png"
    assert drawn["a.bmp"] == "a.bmp.png"
    assert drawn["a.tif"] == "a.tif.png.png"
    assert drawn["b.gif"] == "b.png"
    assert drawn["v.mp4"] == "v.mp4"
    assert drawn["v.MP4"] == "v.MP4.mp4"
    assert len(set(drawn.values())) == len(drawn) == 10


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "real/a.jpg", "in/b.jpg")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    assert [name for name, _ in found(tmp_path / "in")] == ["b.jpg", "link/a.jpg"]


@pytest.mark.parametrize("marker", ["predictions.json", "predictions_info.json", "predictions.json.part"])
def test_an_output_folder_among_the_inputs_is_no_input(tmp_path, marker):
    touch(tmp_path, "a.jpg", "out/images/a.jpg", f"out/{marker}")
    assert found(tmp_path, out=tmp_path / "out") == [("a.jpg", "a.jpg")]
    assert found(tmp_path, out=tmp_path / "new") == [("a.jpg", "a.jpg"), ("out/images/a.jpg", "out/images/a.jpg")]


def test_images_are_not_left_out_because_the_output_goes_beside_them(tmp_path):
    touch(tmp_path, "a.jpg", "b/c.jpg")
    with pytest.raises(ConfigError, match="holds other files than predictions"):
        find_inputs([tmp_path], tmp_path / "b")


@pytest.mark.parametrize(("given", "out"), [("in", "in"), ("out/images", "out"), ("out/videos/deep/a.mp4", "out")])
def test_inputs_are_never_overwritten(tmp_path, given, out):
    touch(tmp_path, "in/a.jpg", "out/images/a.jpg", "out/videos/deep/a.mp4")
    with pytest.raises(ConfigError, match="Give another"):
        find_inputs([tmp_path / given], tmp_path / out)


def test_a_folder_around_the_inputs_may_be_the_output(tmp_path):
    touch(tmp_path, "photos/a.jpg")
    assert found(tmp_path / "photos", out=tmp_path) == [("a.jpg", "a.jpg")]


def test_nothing_to_look_at_is_said(tmp_path):
    touch(tmp_path, "a/notes.txt")
    with pytest.raises(ConfigError, match=r"There is no file or folder .*nowhere"):
        find_inputs([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"No image or video in .*/a\. Endings looked for: \.avi"):
        find_inputs([tmp_path / "a"], tmp_path / "out")
    with pytest.raises(ConfigError, match="No image or video given"):
        find_inputs([], tmp_path / "out")


def test_videos_without_pyav_are_refused_before_anything_runs(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match="pip install av"):
        qskd.predict("nobody/nothing", tmp_path, output_dir=tmp_path / "out")
    assert os.listdir(tmp_path) == ["a.mp4"]
