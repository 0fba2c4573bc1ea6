"""Who may write into a run folder, and what is written there."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from builders_runs import complete_checkpoint
from qskd.cli.parsing import parse
from qskd.errors import ConfigError
from qskd.runs.folder import RunFolder, changed_options, environment
from qskd.runs.options import DataOptions, MethodOptions, ModelOptions, PairOptions
from qskd.trainer import DistillationConfig


def checkpoint(folder: Path, step: int, *, complete: bool = True) -> Path:
    made = complete_checkpoint(folder / "checkpoints" / f"checkpoint-{step}", step)
    if not complete:
        (made / "trainer_state.json").unlink()
    return made


@pytest.mark.parametrize("resume", [None, "", False, "false", "False"])
def test_a_new_run_gets_a_folder_of_its_own(tmp_path, resume):
    assert RunFolder(tmp_path / "deep" / "run").open(resume) is None
    assert (tmp_path / "deep" / "run").is_dir()


def test_what_a_failed_start_leaves_behind_does_not_count_as_a_run(tmp_path):
    for name in ("label_map.json", "metrics.jsonl", "nonfinite_step1.pt", "preflight.json"):
        (tmp_path / name).write_text("")
    assert RunFolder(tmp_path).open(None) is None


@pytest.mark.parametrize("name", ["checkpoint-3", ".checkpoint-3.old"])
def test_checkpoints_are_a_run_where_there_are_some(tmp_path, name):
    (tmp_path / "checkpoints").mkdir()
    assert RunFolder(tmp_path).open(None) is None
    (tmp_path / "checkpoints" / name).mkdir()
    with pytest.raises(ConfigError, match=r"holds another run .checkpoints."):
        RunFolder(tmp_path).open(None)


@pytest.mark.parametrize("name", ["config.yaml", "best", "last", "summary.json"])
def test_a_folder_that_holds_a_run_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"holds another run .{name}.* or remove the folder"):
        RunFolder(tmp_path).open(None)


def test_continuing_is_proposed_only_where_it_would_work(tmp_path):
    checkpoint(tmp_path, 5, complete=False)
    with pytest.raises(ConfigError, match="or remove the folder"):
        RunFolder(tmp_path).open(None)
    checkpoint(tmp_path, 4)
    with pytest.raises(ConfigError, match="or continue that run with --resume_from_checkpoint last"):
        RunFolder(tmp_path).open(None)


@pytest.mark.parametrize("resume", [True, "true", "True", "last"])
def test_the_latest_complete_checkpoint_is_resumed_from(tmp_path, resume):
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, complete=False)
    wanted = checkpoint(tmp_path, 9).parent / "checkpoint-10"
    assert RunFolder(tmp_path).open(resume) == wanted


def test_auto_begins_or_goes_on_whatever_is_there(tmp_path):
    """As a scheduler needs it, which starts the same command again and again."""
    run = RunFolder(tmp_path / "run")
    assert run.open("auto") is None
    (tmp_path / "run" / "config.yaml").write_text("")  # killed before the first checkpoint
    checkpoint(tmp_path / "run", 2, complete=False)
    assert run.open("auto") is None
    wanted = checkpoint(tmp_path / "run", 4)
    assert run.open("auto") == wanted


def test_auto_does_not_write_over_a_run_that_it_cannot_go_on_with(tmp_path):
    (tmp_path / "best").mkdir()
    with pytest.raises(ConfigError, match="holds another run"):
        RunFolder(tmp_path).open("auto")


def test_there_must_be_something_to_resume_from(tmp_path):
    with pytest.raises(ConfigError, match=r"no complete checkpoint in .* Leave out --resume_from_checkpoint"):
        RunFolder(tmp_path).open("last")
    half = checkpoint(tmp_path, 3, complete=False)
    with pytest.raises(ConfigError, match="checkpoint-3 is not a complete checkpoint"):
        RunFolder(tmp_path).open(str(half))


def test_a_checkpoint_from_elsewhere_continues_in_a_new_folder_but_not_over_another_run(tmp_path):
    given = checkpoint(tmp_path / "old", 3)
    assert RunFolder(tmp_path / "new").open(str(given)) == given
    assert (tmp_path / "new").is_dir()
    assert RunFolder(tmp_path / "old").open(str(given)) == given
    (tmp_path / "new" / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds another run"):
        RunFolder(tmp_path / "new").open(str(given))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        RunFolder(tmp_path / "file").open(None)
    with pytest.raises(ConfigError, match="cannot be made"):
        RunFolder(tmp_path / "file" / "run").open(None)


def test_a_training_claims_its_folder(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.claimed("train", {"seed": 3, "data": "scenes"}):
        text = folder.config.read_text()
        with pytest.raises(ConfigError, match=r"holds another run \(config\.yaml\)"):
            folder.open(None)
    assert text == folder.config.read_text() == "# qskd train --config config.yaml\ndata: scenes\nseed: 3\n"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_training_that_fails_early_can_be_started_again(tmp_path, failure):
    folder = RunFolder(tmp_path)
    with pytest.raises(failure), folder.claimed("train", {}):
        raise failure
    assert folder.open(None) is None


def test_a_training_that_fails_late_keeps_its_folder(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(FileExistsError), folder.claimed("train", {"seed": 3}):
        checkpoint(checkpoint(tmp_path, 2).parent.parent, 2)  # the second time it exists
    assert folder.config.is_file()
    assert folder.open("last") == tmp_path / "checkpoints" / "checkpoint-2"


def test_other_processes_neither_write_nor_refuse(tmp_path):
    main, helper = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run", is_main=False)
    assert helper.open(None) is None
    assert not helper.path.exists()
    main.open(None)
    main.save_config("train", {"seed": 1})
    assert helper.open(None) is None
    helper.save_config("train", {"seed": 2})
    helper.save_json("summary.json", {})
    assert [path.name for path in main.path.iterdir()] == ["config.yaml"]
    assert "seed: 1" in main.config.read_text()


def test_the_best_weights_are_the_model_and_else_the_last(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.model() == tmp_path / "last"
    (tmp_path / "best").mkdir()
    assert folder.model() == tmp_path / "best"


def test_json_files_are_strict(tmp_path):
    RunFolder(tmp_path).save_json("eval/val.json", {"AP": None, "größe": 0.5})
    assert json.loads((tmp_path / "eval" / "val.json").read_text()) == {"AP": None, "größe": 0.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunFolder(tmp_path).save_json("eval/val.json", {"AP": float("nan")})


def test_only_what_was_asked_for_is_remembered(tmp_path):
    config = DistillationConfig(
        output_dir=str(tmp_path / "run"),
        use_cpu=True,
        learning_rate=3e-4,
        save_total_limit=None,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 1e-6},
        resume_from_checkpoint="last",
        weight_decay=1e-4,  # its default
    )
    found = changed_options(ModelOptions(model=Path("a/b")), DataOptions(), MethodOptions(selection_cap="5"), config)
    assert found == {
        "model": str(Path("a/b")),
        "selection_cap": 5,
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "learning_rate": 3e-4,
        "save_total_limit": None,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-6},
    }
    assert yaml.safe_load(yaml.safe_dump(found)) == found


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--selection_cap", "2"], {"selection_cap": 2}),
        (["--selection_cap", "none", "--lapd_top_up", "yes"], {"selection_cap": "none", "lapd_top_up": True}),
        (["--lapd_weight", "2"], {"lapd_weight": 2.0}),
        (["--warmup_steps", "5", "--logging_steps", "3"], {"warmup_steps": 5, "logging_steps": 3}),
        (["--lr_scheduler_kwargs", '{"num_cycles": 1}'], {"lr_scheduler_kwargs": {"num_cycles": 1}}),
        (["--include_num_input_tokens_seen", "no", "--eval_strategy", "epoch"], {"eval_strategy": "epoch"}),
    ],
)
def test_flags_and_keywords_that_mean_the_same_are_remembered_alike(tmp_path, flags, options):
    kinds = (PairOptions, DataOptions, MethodOptions, DistillationConfig)
    common = {"output_dir": str(tmp_path / "run"), "use_cpu": True}
    by_flags = changed_options(
        *parse("distill", "", kinds, ["--use_cpu", "--output_dir", common["output_dir"], *flags])
    )
    method = MethodOptions(**{name: value for name, value in options.items() if hasattr(MethodOptions, name)})
    rest = {name: value for name, value in options.items() if not hasattr(MethodOptions, name)}
    by_keywords = changed_options(PairOptions(), DataOptions(), method, DistillationConfig(**common, **rest))
    assert json.dumps(by_flags, sort_keys=True) == json.dumps(by_keywords, sort_keys=True)  # 2 is not 2.0 there
    again = tmp_path / "run.yaml"
    again.write_text(yaml.safe_dump(by_flags))
    assert changed_options(*parse("distill", "", kinds, ["--config", str(again)])) == by_flags


def test_files_and_folders_are_remembered_by_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("scenes", "teacher"):
        (tmp_path / name).mkdir()
    (tmp_path / "val.json").write_text("{}")
    pair = PairOptions(teacher="teacher", student="owner/hub-id", student_backbone_weights="./teacher")
    found = changed_options(pair, DataOptions(data="scenes", val_annotations="val.json", val_images="nowhere"))
    assert found == {
        "teacher": str(tmp_path / "teacher"),
        "student": "owner/hub-id",
        "student_backbone_weights": str(tmp_path / "teacher"),
        "data": str(tmp_path / "scenes"),
        "val_annotations": str(tmp_path / "val.json"),
        "val_images": "nowhere",
    }


def test_the_environment_names_what_a_result_depends_on():
    found = environment()
    assert {"python", "platform", "qskd", "torch", "transformers", "numpy"} <= found.keys()
    assert "not installed" not in found.values()


def test_all_processes_go_on_from_the_checkpoint_that_the_first_one_chose(tmp_path, monkeypatch):
    """Another one may look when the first has brought back what a kill had left half moved."""
    wanted = checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda found, src: found.__setitem__(0, wanted))
    assert RunFolder(tmp_path, is_main=False).open("last") == wanted
