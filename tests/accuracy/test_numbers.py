"""Records and tables, by hand."""

import json
import subprocess

import pytest

from builders_accuracy import finish, place_of, record
from qskd.losses.presets import options_of as options_of_preset
from qskd.losses.presets import resolve


def test_differences_are_paired_by_seed_with_students_interval(parts):
    """Gains 1, 2 and 3 points: mean 2, standard deviation 1, t of 2 degrees 4.3027, half width 4.3027 / sqrt(3)."""
    baseline = [record(parts, seed=seed, ap=ap) for seed, ap in enumerate((0.10, 0.20, 0.30))]
    ours = [record(parts, method="qskd", seed=seed, ap=ap) for seed, ap in enumerate((0.11, 0.22, 0.33))]
    gain = parts["tables"].paired(ours, [*baseline, record(parts, seed=9, ap=0.9)])
    assert (gain.mean, gain.count) == (pytest.approx(0.02), 3)
    assert gain.error == pytest.approx(0.01 / 3**0.5)
    assert gain.half_width == pytest.approx(0.01 * 4.302653 / 3**0.5, rel=1e-5)
    assert not gain.is_clear
    assert parts["tables"].paired(ours[:1], baseline).half_width is None
    assert parts["tables"].paired(ours, [record(parts, seed=9)]) is None


def test_the_cost_of_the_baselines_ap_is_read_off_the_curve(parts):
    """AP 0.2 lies half way between 0.1 after 20 steps and 0.3 after 40: 30 of 100 steps, each twice as long."""
    ours = record(parts, method="qskd", curve=((20, 0.1), (40, 0.3), (100, 0.5)), train_seconds=200.0)
    assert parts["tables"].cost_shares([ours], [record(parts)]) == pytest.approx((0.3, 0.6))
    never = record(parts, method="qskd", curve=((50, 0.1), (100, 0.19)))
    assert parts["tables"].cost_shares([never], [record(parts)]) == (None, None)


def test_tables_put_the_baseline_first_and_say_what_is_amiss(parts):
    records = [
        record(parts, method="qskd", ap=0.25, changed=True, searched=False, teacher_ap=0.5),
        record(parts),
    ]
    text = parts["tables"].as_markdown(parts["tables"].tables_of(records))
    assert text.index("| none |") < text.index("| qskd |")
    assert "+5.0 (one seed)" in text
    assert "1 of 2 cells were trained with other settings" in text
    assert "Not searched: qskd." in text
    assert "teacher AP 50.0" in text


def test_tables_say_which_presets_have_other_options_by_now(parts):
    options = options_of_preset(resolve("qskd"))
    text = {
        weight: parts["tables"].as_markdown(
            parts["tables"].tables_of(
                [
                    record(parts, method=method, options=options | {"lapd.hard_negative_box_weight": weight})
                    for method in ("qskd", "qskd_from_scratch")
                ]
            )
        )
        for weight in (0.0, 1.0)
    }
    assert "by now" not in text[0.0]
    unknown = parts["tables"].as_markdown(parts["tables"].tables_of([record(parts, method="qskd"), record(parts)]))
    assert "The options of qskd were not recorded (seeds 0)." in unknown
    assert "not recorded" not in text[0.0]
    for method in ("qskd", "qskd_from_scratch"):
        told = f"{method} was trained with lapd.hard_negative_box_weight 1.0, which is 0.0 by now (seeds 0)."
        assert told in text[1.0]


def test_every_row_is_compared_with_the_method_too(parts):
    records = [record(parts, method="qskd", ap=0.25), record(parts), record(parts, method="positives", ap=0.22)]
    rows = {row.method: row for row in parts["tables"].tables_of(records)[0].rows}
    assert rows["positives"].behind.mean == pytest.approx(0.03)
    assert rows["none"].behind.mean == pytest.approx(0.05)
    assert rows["qskd"].behind is None


def test_records_of_several_machines_and_seeds_come_together_in_one_file(parts, tmp_path):
    path, merge = tmp_path / "a.json", parts["records"].merge_records
    merge([record(parts), record(parts, method="qskd", inherited=0.5)], path)
    again = merge([record(parts, ap=0.3), record(parts, seed=1), record(parts, device="cuda, H100")], path)
    assert parts["records"].load_records(path) == again
    assert [(one.method, one.seed, one.device, one.ap) for one in again] == [
        ("none", 0, "cpu", 0.3),
        ("none", 0, "cuda, H100", 0.2),
        ("none", 1, "cpu", 0.2),
        ("qskd", 0, "cpu", 0.2),
    ]
    assert merge([], path) == again


def test_a_finished_cell_that_cannot_be_read_is_named_and_the_others_stay(parts, grid, tmp_path):
    place = place_of(parts, grid, tmp_path)
    bad, other = grid.cells(["bccd", "d_fine", "0", "none", "qskd"])
    finish(tmp_path, bad, 0.1)
    (tmp_path / other.name).mkdir(parents=True)
    (tmp_path / other.name / "summary.json").write_text("{")
    records, problems = parts["records"].read_records(place)
    assert records == []
    assert len(problems) == 2
    assert problems[0].startswith("cells/bccd/d_fine/none/seed0: ")


def test_what_was_moved_aside_is_no_record(parts, grid, tmp_path):
    (tmp_path / "cells" / "bccd" / "d_fine" / "none" / "seed7.old1").mkdir(parents=True)
    (tmp_path / "cells" / "bccd" / "d_fine" / "none" / "seed7.old1" / "summary.json").write_text("{}")
    assert parts["records"].read_records(place_of(parts, grid, tmp_path)) == ([], [])


@pytest.mark.parametrize("content", ["[{", "{}x", '[{"dataset": "d", "ap": 0.1}]', "[3]"])
def test_records_that_are_none_are_refused_before_anything_is_trained(parts, tmp_path, capsys, content):
    (tmp_path / "a.json").write_text(content)
    arguments = ["--out", str(tmp_path / "a.json"), "--runs", str(tmp_path / "runs"), "--only", "drawn_easy"]
    assert parts["accuracy"].main(arguments) == 2
    assert "holds no records of this benchmark" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_data_that_lie_nowhere_are_not_done(parts, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("QSKD_BENCHMARK_DATA", raising=False)
    arguments = ["--out", str(tmp_path / "a.json"), "--runs", str(tmp_path / "runs"), "--only", "bccd"]
    assert parts["accuracy"].main(arguments) == 1
    assert "left out bccd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--search", "--seeds", "5"], "--seeds chooses cells; trials have the seeds of"),
        (["--seeds", "0", "100"], "--seeds 100: the search has chosen the learning rates with this seed"),
        (["--search", "--summarise"], "--summarise makes tables of cells"),
        (["--sweeps", "--only", "positives"], "--sweeps: the grid varies qskd, which is not among"),
    ],
)
def test_what_a_call_cannot_mean_is_refused(parts, tmp_path, capsys, words, message):
    arguments = ["--out", str(tmp_path / "a.json"), "--runs", str(tmp_path / "runs"), *words]
    assert parts["accuracy"].main(arguments) == 2
    assert message in capsys.readouterr().err


def test_tables_need_no_data_and_are_written_whole(parts, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("QSKD_BENCHMARK_DATA", raising=False)
    out, runs = tmp_path / "a.json", tmp_path / "runs"
    rows = [("bccd", "d_fine"), ("drawn_easy", "rt_detr")]
    parts["records"].merge_records([record(parts, dataset=data, pair=pair) for data, pair in rows], out)
    call = ["--out", str(out), "--runs", str(runs), "--summarise", "--only", "bccd"]
    assert parts["accuracy"].main(call) == 0
    printed, written = capsys.readouterr().out, (runs / "accuracy.md").read_text()
    assert "### bccd, d_fine" in printed
    assert "### drawn_easy" not in printed
    assert "### bccd, d_fine" in written
    assert "### drawn_easy, rt_detr" in written


def test_the_commands_of_a_dry_run_are_a_script(parts, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("QSKD_BENCHMARK_DATA", raising=False)
    call = ["--out", str(tmp_path / "a.json"), "--runs", str(tmp_path / "runs"), "--dry-run"]
    for words in (["--only", "drawn_easy", "bccd", "0"], ["--search", "--sweeps", "--only", "drawn_easy"]):
        parts["accuracy"].main([*call, *words])
        script = capsys.readouterr().out
        assert "no complete search" in script
        assert " -m qskd distill " in script
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize("key", ["loss", "eval_AP50"])
def test_a_cell_that_two_calls_trained_at_once_does_not_count(parts, tmp_path, key):
    lines = [json.dumps({"step": step, key: 1.0}) for step in (1, 2, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines[:2] + lines[3:]))
    parts["records"]._evaluations(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="goes back in steps"):
        parts["records"]._evaluations(tmp_path)
