"""The command itself: help, version, exit statuses, and how little it imports for them."""

import os
import subprocess
import sys

import pytest

import qskd
from qskd.cli import COMMANDS, main


def python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_command(capsys, arguments):
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: qskd <command>")
    for name, what in COMMANDS.items():
        assert f"  {name.ljust(7)}  {what}" in printed


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_that_of_the_package(capsys, flag):
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"qskd {qskd.__version__}\n"


@pytest.mark.parametrize("name", ["distil", "--data", "TRAIN"])
def test_an_unknown_command_is_status_2_and_the_commands_are_named(capsys, name):
    assert main([name]) == 2
    told = capsys.readouterr().err
    assert f"unknown command '{name}'" in told
    assert all(command in told for command in COMMANDS)


@pytest.mark.parametrize("command", ["train", "distill", "cache", "eval", "inspect", "demo"])
def test_every_command_explains_its_options(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: qskd {command}" in printed
    assert "--config" in printed
    if command in ("train", "distill"):
        for flag in ("--data", "--output_dir", "--max_steps", "--per_device_train_batch_size", "--ema_decay"):
            assert flag in printed
    if command == "distill":
        for flag in ("--teacher", "--student_backbone", "--method", "--no-preflight", "--selection_cap", "--agfd_mask"):
            assert flag in printed


def test_bad_input_is_status_2_with_a_reason_and_no_traceback(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--model", "nowhere/at/all", "--data", "nowhere", "--output_dir", "run"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("qskd train: 'nowhere' is no folder here")
    assert "Traceback" not in captured.err + captured.out


def test_an_interruption_is_status_130(capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("qskd.cli.env.run", interrupted)
    assert main(["env"]) == 130
    assert capsys.readouterr().err == "qskd env: interrupted\n"


@pytest.mark.parametrize("arguments", [["--help"], ["env"]])
def test_an_output_that_nobody_reads_ends_the_command_without_a_traceback(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "qskd", *arguments]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    finally:
        os.close(writer)
    assert done.returncode == 141
    assert "nothing reads the output" in done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipeError" not in done.stderr


def test_env_names_versions_and_devices(capsys):
    assert main(["env"]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"python", "torch", "transformers", "threads", "cuda"} <= printed.keys()
    assert printed["qskd"] == qskd.__version__


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["env", "--json"], "There is no option '--json'."),
        (
            ["check", "DIR", "--data-fromat", "coco"],
            "no option '--data-fromat'. Did you mean '--data-format'?",
        ),
        (["split", "DIR", "--outputdir=x"], "There is no option '--outputdir=x'. Did you mean '--output_dir'?"),
        (["compare", "RUN", "--output", "x"], "There is no option '--output'. Did you mean '--output_dir'?"),
        (["models", "--techer", "x"], "There is no option '--techer'. Did you mean '--teacher'?"),
        (["predict", "MODEL", "INPUT", "--classs", "x"], "There is no option '--classs'. Did you mean '--classes'?"),
    ],
)
def test_an_option_that_does_not_exist_is_refused_with_the_nearest(capsys, arguments, told):
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "split --output_dir out"])
def test_what_begins_with_a_hyphen_may_follow_two(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--", "--weird"]) == 2
    assert "'--weird' is no folder" in capsys.readouterr().err


def test_a_word_too_many_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["models", "word"])
    assert caught.value.code == 2
    assert "unrecognized arguments: word" in capsys.readouterr().err


def test_options_of_every_command_may_be_written_with_hyphens(capsys, tmp_path, scenes):
    assert main(["split", str(scenes), "--output-dir", str(tmp_path / "out"), "--data-format", "coco"]) == 0
    assert main(["check", str(tmp_path / "out"), "--no-pixels", "--data-format", "coco"]) == 0


def test_the_module_is_the_command_and_help_imports_no_torch():
    script = "import runpy, sys; sys.argv = ['qskd', '--help']\n"
    script += "try: runpy.run_module('qskd', run_name='__main__')\n"
    script += "except SystemExit as end: print(end.code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    done = python("-c", script)
    assert done.stdout.startswith("usage: qskd <command>"), done.stderr
    assert done.stdout.splitlines()[-1] == "0 False False"
    unknown = python("-m", "qskd", "distil")
    assert unknown.returncode == 2
    assert "unknown command 'distil'" in unknown.stderr


@pytest.mark.parametrize("command", ["predict", "inspect", "compare", "check", "split", "demo"])
def test_commands_that_several_processes_would_only_repeat_are_refused_under_a_launcher(capsys, monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main([command, "anything"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"qskd {command} (process 1 of 2): works in one process")
    assert "torchrun" in told
