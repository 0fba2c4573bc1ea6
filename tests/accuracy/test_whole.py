"""A tiny grid from the search to the tables, every cell trained by the commands that a user would run."""

import json

import pytest
import yaml

GRID = {
    "flags": {"save_strategy": "no", "logging_steps": 1, "per_device_eval_batch_size": 4},
    "student_flags": {"eval_strategy": "no", "learning_rate": 1e-4, "max_steps": 2, "warmup_steps": 0},
    "datasets": {
        "tiny": {
            "drawn": {"difficulty": "easy", "train": 10, "val": 4, "size": 64, "seed": 0},
            "flags": {"image_size": 64, "per_device_train_batch_size": 2},
        }
    },
    "pairs": {"rt_detr": {"trained": "src/qskd/assets/demo_teacher", "student": "src/qskd/assets/demo_student.json"}},
    "methods": {"none": {}, "inheritance": {"method": "none"}, "qskd": {"method": "qskd"}},
    "search": {"holdout": 0.4, "seeds": [100], "steps": 0.5, "factors": [3], "methods": ["qskd"]},
    "blocks": [
        {
            "datasets": ["tiny"],
            "pairs": ["rt_detr"],
            "methods": ["none", "inheritance", "qskd"],
            "seeds": [0],
            "curve": 2,
        }
    ],
}


@pytest.mark.slow
def test_a_tiny_grid_is_searched_trained_and_told(parts, tmp_path, capsys):
    grid, runs, out = tmp_path / "grid.yaml", tmp_path / "runs", tmp_path / "records.json"
    grid.write_text(yaml.safe_dump(GRID))
    call = ["--grid", str(grid), "--runs", str(runs), "--out", str(out), "--jobs", "2"]
    main = parts["accuracy"].main
    assert main([*call, "--search", "--only", "qskd"]) == 0
    assert "search/tiny/rt_detr/qskd/factor3-seed100: done" in capsys.readouterr().out
    assert main(call) == 0
    told = capsys.readouterr().out
    assert told.count(": done in") == 3
    records = {record["method"]: record for record in json.loads(out.read_text())}
    assert set(records) == {"none", "inheritance", "qskd"}
    for method, record in records.items():
        assert record["steps"] == 2
        assert record["device"].startswith("cpu, ")
        assert record["commit"]
        assert record["train_seconds"] > 0
        assert record["searched"] == (method == "qskd")
        assert record["learning_rate"] == pytest.approx(3e-4 if method == "qskd" else 1e-4)
        assert [step for step, _ in record["curve"]] == [1, 2]
        assert record["curve"][-1][1] == record["ap"]
        assert bool(record["inherited"]) == (method != "none")
        assert ("lapd.weight" in record["options"]) == (method != "none")
    assert "| qskd | 0 |" in (runs / "accuracy.md").read_text()
    assert list(runs.glob("*.png"))
    assert main(call) == 0
    assert ": begun" not in capsys.readouterr().out, "nothing is trained twice"
