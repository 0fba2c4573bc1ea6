import json
import shutil
from pathlib import Path

import pytest

import qskd
from qskd.cli import main

TEACHER = str(Path(qskd.__file__).parent / "assets" / "demo_teacher")


@pytest.fixture
def photos(scenes, tmp_path, monkeypatch):
    """Two images whose names are not plain, in a folder; the current folder is above it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "Fotos vom März"
    folder.mkdir()
    for source, name in (("000001.jpg", "a b.jpg"), ("000004.jpg", "Öl 油.jpg")):
        shutil.copy(scenes / "images" / "val" / source, folder / name)
    return folder


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_command_draws_writes_and_counts(photos, capsys):
    assert main(["predict", TEACHER, str(photos)]) == 0
    out = Path("predictions")
    assert names(out) == ["images/a b.jpg", "images/Öl 油.jpg", "predictions.json", "predictions_info.json"]
    rows = json.loads((out / "predictions.json").read_text())
    info = json.loads((out / "predictions_info.json").read_text())
    assert {row["file_name"] for row in rows} <= {"a b.jpg", "Öl 油.jpg"}
    assert min(row["score"] for row in rows) >= 0.3
    assert info["qskd"] == qskd.__version__
    assert (info["threshold"], info["image_size"], info["model"]) == (0.3, {"square": 128}, TEACHER)
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score", "file_name"}
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"2 images, {len(rows)} boxes" in printed.out
    assert "s each" in printed.out
    assert "predictions: predictions/predictions.json" in printed.out
    names_of = {category["id"]: category["name"] for category in info["categories"]}
    for row in rows:
        count = sum(other["category_id"] == row["category_id"] for other in rows)
        line = next(line for line in printed.out.splitlines() if line.startswith(names_of[row["category_id"]]))
        assert line.split()[1] == str(count)


@pytest.mark.parametrize("flag", ["--no-pictures", "--no_pictures", "--json_only", "--json-only"])
def test_json_alone(photos, capsys, flag):
    assert main(["predict", flag, TEACHER, str(photos), "--output-dir", "out", "--batch-size", "1"]) == 0
    assert names(Path("out")) == ["predictions.json", "predictions_info.json"]
    assert "drawn" not in capsys.readouterr().out


def test_a_second_run_does_not_see_what_the_first_one_drew(photos, capsys):
    command = ["predict", TEACHER, str(photos), "--output_dir", str(photos / "found")]
    assert main(command) == 0
    first = (photos / "found" / "predictions.json").read_text()
    before = names(photos)
    assert main(command) == 0
    assert names(photos) == before
    assert (photos / "found" / "predictions.json").read_text() == first
    assert capsys.readouterr().out.count("2 images") == 2


def test_a_broken_image_does_not_stop_the_others(photos, capsys):
    whole = (photos / "a b.jpg").read_bytes()
    (photos / "0 cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "text.png").write_text("no image")
    assert main(["predict", TEACHER, str(photos), "--batch_size", "2"]) == 1
    printed = capsys.readouterr()
    assert "2 images" in printed.out
    assert "2 could not be read:" in printed.err
    assert "0 cut.jpg: the image cannot be decoded" in printed.err
    assert "text.png: not an image file" in printed.err
    info = json.loads(Path("predictions/predictions_info.json").read_text())
    assert [image["id"] for image in info["images"]] == [2, 4]
    assert [one["file_name"] for one in info["unreadable"]] == ["0 cut.jpg", "text.png"]


def test_nothing_but_broken_images(photos, capsys):
    for path in photos.iterdir():
        path.write_bytes(b"")
    assert main(["predict", TEACHER, str(photos)]) == 1
    assert json.loads(Path("predictions/predictions.json").read_text()) == []
    assert "0 images, 0 boxes" in capsys.readouterr().out


def test_no_box_is_a_result_too(photos, capsys):
    assert main(["predict", TEACHER, str(photos), "--threshold", "1"]) == 0
    assert json.loads(Path("predictions/predictions.json").read_text()) == []
    assert len(names(Path("predictions/images"))) == 2
    assert "2 images, 0 boxes" in capsys.readouterr().out


def test_one_name_in_two_folders(photos, scenes):
    for folder in ("one", "two"):
        Path(folder).mkdir()
        shutil.copy(scenes / "images" / "val" / "000001.jpg", f"{folder}/x.jpg")
    assert main(["predict", TEACHER, "one/x.jpg", "two/x.jpg", "--classes", "square", "ring"]) == 0
    assert names(Path("predictions/images")) == ["one/x.jpg", "two/x.jpg"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["./nowhere", "PHOTOS"], "nowhere does not exist. Give a folder"),
        ([TEACHER, "nowhere.jpg"], "There is no file or folder"),
        ([TEACHER, "empty"], "No image or video in"),
        ([TEACHER, "PHOTOS", "--threshold", "2"], "--threshold is 2.0; give a score from 0 to 1"),
        ([TEACHER, "PHOTOS", "--classes", "sqare"], "Did you mean 'square'?"),
        ([TEACHER, "PHOTOS", "--device", "tpu9"], "--device tpu9 cannot be used"),
    ],
)
def test_bad_input_is_status_2_and_leaves_nothing(photos, capsys, arguments, told):
    Path("empty").mkdir()
    assert main(["predict", *[str(photos) if one == "PHOTOS" else one for one in arguments]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qskd predict: ")
    assert told in error
    assert not Path("predictions").exists()


def test_help_tells_the_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["predict", "--help"])
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("--output_dir", "Default: predictions.", "Default: 0.3.", "Default: 100.", "--classes NAME"):
        assert text in printed
