import json

import pytest

from builders_reports import write_run
from qskd.cli import main


def test_the_command_prints_a_table_and_writes_the_report(tmp_path, capsys):
    runs = [write_run(tmp_path / "base"), write_run(tmp_path / "qskd", kind="distill", AP=0.4)]
    out = tmp_path / "out"
    # Options may stand between the runs.
    assert main(["compare", str(runs[0]), "--output_dir", str(out), str(runs[1]), "--images", "0"]) == 0
    printed = capsys.readouterr().out
    assert "qskd: +10.0 AP over baseline" in printed
    assert str(out / "report.html") in printed
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md"]


def test_data_given_on_the_command_line_is_used(tmp_path, scenes, tiny_folders):
    run = write_run(tmp_path / "a", model=tiny_folders["rt_detr_student"])
    out = tmp_path / "out"
    assert main(["compare", str(run), "--data", str(scenes), "--output_dir", str(out), "--images", "1"]) == 0
    assert (out / "pictures.jpg").is_file()


@pytest.mark.parametrize(("latency", "measured"), [("on", True), ("off", False)])
def test_latency_is_measured_unless_that_is_switched_off(tmp_path, tiny_folders, latency, measured):
    run = write_run(tmp_path / "a", model=tiny_folders["rt_detr_student"])
    out = tmp_path / "out"
    assert main(["compare", str(run), "--latency", latency, "--output_dir", str(out), "--images", "0"]) == 0
    content = json.loads((out / "report.json").read_text())
    assert (content["speed"] is not None) == measured
    assert (content["rows"][0]["latency_ms"] != 5.0) == measured  # what the run's summary says


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["{run}", "--output_dir", "{run}/summary.json/x"], "--output_dir {run}/summary.json/x cannot be made"),
        (["{run}", "--images", "-2"], "--images is -2"),
        (["{run}", "--data", "nowhere"], "'nowhere' is no folder here"),
        (["{run}", "--val_split", "test"], "--val_split says how to read --data"),
        (["{run}", "--val_images", "x"], "Give --val_annotations and --val_images together"),
    ],
)
def test_bad_input_is_status_2_with_a_reason(tmp_path, capsys, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run")
    assert main(["compare", *(argument.format(run=run) for argument in arguments)]) == 2
    assert told.format(run=run) in capsys.readouterr().err


def test_without_runs_the_usage_is_shown(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["compare"])
    assert caught.value.code == 2
    assert "RUN" in capsys.readouterr().err
