"""The log file and the lines on the console."""

import io
import json

import pytest
from transformers import TrainerControl, TrainerState

from qskd.trainer import DistillationConfig
from qskd.trainer.callbacks import Console, EarlyStopping, MetricsFile

CONTROL = TrainerControl()


@pytest.fixture
def arguments(tmp_path) -> DistillationConfig:
    return DistillationConfig(output_dir=str(tmp_path), use_cpu=True)


def state(step=2, *, is_main=True) -> TrainerState:
    return TrainerState(global_step=step, max_steps=10, is_world_process_zero=is_main)


def printed(arguments, logs, capsys, **kwargs) -> str:
    Console().on_log(arguments, state(**kwargs), CONTROL, logs=logs)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        ({"loss": 1.23456, "grad_norm": 0.5, "learning_rate": 1e-4, "epoch": 1.0}, "loss 1.235  grad_norm 0.5"),
        ({"loss": 2.0, "lapd_box": 0.25, "agfd": 1e-5}, "loss 2  lapd_box 0.25  agfd 1e-05"),
        # The parts of every layer together: one number a kind.
        ({"loss": 3.0, "loss_vfl": 1.0, "loss_vfl_aux_0": 0.5, "loss_vfl_dn_1": 0.25}, "loss 3  loss_vfl 1.75"),
        ({"eval_AP": 0.1234, "eval_AP50": 0.5, "eval_AP75": 0.1, "eval_AR1": 0.9}, "AP 12.3  AP50 50.0  AP75 10.0"),
        ({"eval_AP": 0.5}, "AP 50.0"),
        ({"eval_num_images": 6, "epoch": 1.0}, "no AP: no validation image holds an object"),
        ({"train_runtime": 61.4, "train_loss": 4.5}, "trained for 61 s, mean loss 4.5"),
    ],
)
def test_a_log_entry_is_one_line(arguments, capsys, logs, line):
    assert printed(arguments, logs, capsys) == f"step 2/10  {line}\n"


def test_only_the_first_process_prints(arguments, capsys):
    assert printed(arguments, {"loss": 1.0}, capsys, is_main=False) == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "disabled", "has_bar"),
    [(Terminal(), False, True), (Terminal(), True, False), (io.StringIO(), False, False)],
    ids=["terminal", "switched-off", "file"],
)
def test_a_progress_bar_is_drawn_on_terminals_only(arguments, monkeypatch, stream, disabled, has_bar):
    monkeypatch.setattr("sys.stderr", stream)
    arguments.disable_tqdm = disabled
    console = Console()
    console.on_train_begin(arguments, state(0), CONTROL)
    console.on_step_end(arguments, state(1), CONTROL)
    console.on_train_end(arguments, state(1), CONTROL)
    assert bool(stream.getvalue()) == has_bar


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_entry_becomes_a_line(arguments, tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    file = MetricsFile(path)
    file.on_train_begin(arguments, state(0), CONTROL)  # nothing there yet
    file.on_log(arguments, state(1), CONTROL, logs={"loss": 1.0})
    file.on_log(arguments, state(2, is_main=False), CONTROL, logs={"loss": 9.0})
    file.on_log(arguments, state(2), CONTROL, logs={"eval_AP": 0.5})
    assert lines(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "eval_AP": 0.5}]


LOGGED = [
    {"step": 0, "eval_AP50": 0.1},
    {"step": 2, "loss": 3.0},
    {"step": 2, "eval_AP50": 0.2},
    {"step": 2, "train_runtime": 7.0},
    {"step": 4, "loss": 2.0},
]


@pytest.mark.parametrize(
    ("step", "on_start", "kept"),
    [
        (0, False, [0]),
        (0, True, []),  # the run evaluates before its first step once more
        (2, False, [0, 1, 2]),
        (2, True, [0, 1]),
        (4, False, [0, 1, 2, 4]),
    ],
)
def test_a_resumed_run_drops_what_it_will_log_again(arguments, tmp_path, step, on_start, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in LOGGED) + '\n[1]\n{"step": 1, "lo')
    arguments.eval_on_start = on_start
    MetricsFile(path).on_train_begin(arguments, state(step), CONTROL)
    assert lines(path) == [LOGGED[position] for position in kept]


def test_early_stopping_begins_at_zero_or_where_the_checkpoint_says(arguments):
    patience = EarlyStopping(3)
    fresh = state(0)
    patience.on_train_begin(arguments, fresh, CONTROL)
    assert patience.early_stopping_patience_counter == 0
    patience.early_stopping_patience_counter = 2
    resumed = state(4)
    resumed.stateful_callbacks = {"EarlyStopping": patience.state()}
    again = EarlyStopping(3)
    again.on_train_begin(arguments, resumed, CONTROL)
    assert again.early_stopping_patience_counter == 2
