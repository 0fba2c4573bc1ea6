import json

import pytest

from qskd.cli import main

FLAGS = ("--image_size", "64", "--images", "1", "--statistics_images", "2")


def test_the_command_writes_the_page_and_says_what_it_found(tmp_path, scenes, tiny_folders, capsys):
    out, teacher = tmp_path / "out", str(tiny_folders["rt_detr_teacher"])
    flags = ["--teacher", teacher, "--data", str(scenes), "--output_dir", str(out), *FLAGS, "--selection_cap", "2"]
    assert main(["inspect", *flags]) == 0
    printed = capsys.readouterr().out
    assert "In the last decoder layer" in printed
    assert f"page: {out / 'inspect.html'}" in printed
    assert sorted(path.name for path in out.iterdir()) == ["inspect.html", "inspect.json", "pictures"]
    assert json.loads((out / "inspect.json").read_text())["settings"]["selection.cap"] == 2


def test_several_image_files_may_follow_one_flag(tmp_path, scenes, tiny_folders):
    files = [str(path) for path in sorted((scenes / "images" / "val").iterdir())[:2]]
    teacher = str(tiny_folders["rt_detr_teacher"])
    assert main(["inspect", "--teacher", teacher, "--image", *files, "--output_dir", str(tmp_path), *FLAGS]) == 0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--data", "nowhere"], "qskd inspect: --teacher was not given"),
        (["--teacher", "{teacher}"], "No images"),
        (["--teacher", "{teacher}", "--data", "nowhere"], "'nowhere' is no folder here"),
        (["--teacher", "{teacher}", "--data", "nowhere", "--method", "magic"], "There is no method 'magic'"),
        (["--teacher", "{teacher}", "--image", "nowhere.png"], "nowhere.png: there is no such image file"),
    ],
)
def test_bad_input_is_status_2_with_a_reason(tmp_path, capsys, monkeypatch, tiny_folders, flags, told):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *(flag.format(teacher=tiny_folders["rt_detr_teacher"]) for flag in flags)]) == 2
    assert told in capsys.readouterr().err
