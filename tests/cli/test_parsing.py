"""Flags and ``--config`` files become options; what they mean is tested where the options live."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from qskd.cli.parsing import parse
from qskd.errors import ConfigError
from qskd.runs.options import DataOptions, MethodOptions, PairOptions
from qskd.trainer import DistillationConfig

DISTILL = (PairOptions, DataOptions, MethodOptions, DistillationConfig)


@dataclass
class Options:
    """One option of every kind."""

    size: int | None = None
    rate: float = 1e-4
    name: str | None = "x"
    kind: Literal["a", "b"] = "a"
    is_on: bool = True
    is_off: bool = False
    many: list[str] = field(default_factory=list)
    extra: dict | str | None = None


def parsed(*arguments: str) -> Options:
    (options,) = parse("test", "A test.", (Options,), arguments)
    return options


def from_file(tmp_path, content: str, *arguments: str) -> Options:
    path = tmp_path / "run.yaml"
    path.write_text(content, encoding="utf-8")
    return parsed("--config", str(path), *arguments)


def distilled(tmp_path, *arguments: str):
    return parse("distill", "", DISTILL, ["--use_cpu", "--output_dir", str(tmp_path), *arguments])


def test_without_arguments_everything_is_as_by_default():
    assert parsed() == Options()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("", Options()),
        ("# nothing but a comment\n", Options()),
        ("size: 5\nrate: 1e-3\n", Options(size=5, rate=1e-3)),
        ("name: no", Options(name="no")),  # YAML 1.1 would say False
        ("name: 1.50", Options(name="1.50")),
        ("name: größer", Options(name="größer")),
        ("name: null\nsize: ~", Options(name=None, size=None)),
        ("name:", Options(name=None)),
        ("kind: b", Options(kind="b")),
        ("is_on: false\nis_off: yes", Options(is_on=False, is_off=True)),
        ("many: [p, 2]", Options(many=["p", "2"])),
        ("rate: -2", Options(rate=-2.0)),
        ("name: --size=3", Options(name="--size=3")),
    ],
)
def test_a_file_holds_options_by_name(tmp_path, content, wanted):
    assert from_file(tmp_path, content) == wanted


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--size", "7"], Options(size=7, rate=0.5, is_on=False)),
        (["--rate=0.25"], Options(size=5, rate=0.25, is_on=False)),
        (["--is_on"], Options(size=5, rate=0.5)),
        (["--is-on", "true"], Options(size=5, rate=0.5)),
    ],
)
def test_flags_win_over_the_file(tmp_path, flags, wanted):
    content = "size: 5\nrate: 0.5\nis_on: false"
    assert from_file(tmp_path, content, *flags) == wanted
    path = tmp_path / "run.yaml"
    assert parsed(*flags, f"--config={path}") == wanted  # wherever the file is named


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("sise: 5", "run.yaml: There is no option 'sise'. Did you mean 'size'?"),
        ("qqq: 5", "run.yaml: There is no option 'qqq'."),
        ("config: other.yaml", "There is no option 'config'"),
        ("- size", "holds no `option: value` lines"),
        ("just text", "holds no `option: value` lines"),
        ("size: [1", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path, content, told):
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path, content)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("size: five", "--size: invalid int value: 'five'"),
        ("kind: c", "--kind: invalid choice"),
        ("is_on: maybe", "Truthy value expected"),
    ],
)
def test_a_value_of_a_file_is_checked_like_a_flags(tmp_path, content, told):
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path, content)
    assert told in str(caught.value)
    name, value = content.split(": ")
    with pytest.raises(ConfigError, match=told):
        parsed(f"--{name}", value)


@pytest.mark.parametrize("path", ["nowhere.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(path):
    with pytest.raises(ConfigError, match=f"--config {path} cannot be read"):
        parsed("--config", path)
    with pytest.raises(ConfigError, match="--config takes a YAML file"):
        parsed("--config")


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--teecher", "There is no option '--teecher'. Did you mean '--teacher'?"),
        ("--leaning_rate=3", "There is no option '--leaning_rate=3'. Did you mean '--learning_rate'?"),
        ("--student", "expected one argument"),
        ("--selection_kap=5", "There is no option '--selection_kap=5'. Did you mean '--selection_cap'?"),
        ("stray", "There is no option 'stray'"),
    ],
)
def test_an_unknown_flag_is_refused_with_a_suggestion(tmp_path, argument, told):
    with pytest.raises(ConfigError) as caught:
        distilled(tmp_path, argument)
    assert told in str(caught.value)


def test_options_keep_the_names_that_hugging_face_users_know(tmp_path):
    arguments = (
        "--teacher_model_name_or_path t --student_model_name_or_path s --max_steps 7 --per_device_train_batch_size 3 "
        "--learning_rate 3e-4 --lr_scheduler_type linear --warmup_steps 5 --eval_strategy steps --eval_steps 2 "
        "--save_total_limit 4 --gradient_accumulation_steps 2 --seed 9 --report_to none"
    )
    pair, _, _, config = distilled(tmp_path, *arguments.split())
    assert (pair.teacher, pair.student) == ("t", "s")
    assert (config.max_steps, config.per_device_train_batch_size, config.learning_rate) == (7, 3, 3e-4)
    assert (config.eval_strategy.value, config.eval_steps, config.save_total_limit) == ("steps", 2, 4)
    assert (config.gradient_accumulation_steps, config.seed, config.warmup_steps) == (2, 9, 5)


def test_options_of_a_method_are_flags(tmp_path):
    arguments = "--method qskd_tprd --selection_cap 5 --agfd_mask none --lapd-top-up true --agfd_epsilon 1e-8"
    _, _, method, _ = distilled(tmp_path, *arguments.split())
    settings = method.settings()
    assert (settings.selection.cap, settings.agfd.mask) == (5, "none")
    assert (settings.lapd.top_up, settings.agfd.epsilon, settings.lapd.single_mean) == (True, 1e-8, True)


@pytest.mark.parametrize(
    ("flags", "is_on"),
    [([], True), (["--no-preflight"], False), (["--no_preflight"], False), (["--preflight", "no"], False)],
)
def test_the_preflight_can_be_switched_off(tmp_path, flags, is_on):
    assert distilled(tmp_path, *flags)[2].preflight is is_on


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--eval_strategy", "sometimes"], "argument --eval_strategy/--eval-strategy: invalid choice: 'sometimes'"),
        (["--max_steps", "ten"], "argument --max_steps/--max-steps: invalid int value: 'ten'"),
        (["--bf16", "--fp16"], "bf16"),
        (["--ema_decay", "3"], "ema_decay is 3.0"),
        (["--lr_scheduler_kwargs", "{"], "lr_scheduler_kwargs is '{', which is no JSON"),
        (["--lr_scheduler_kwargs", '{"a": 1}'], "do not fit lr_scheduler_type cosine"),
        (["--fsdp", "full_shard"], "fsdp is not supported"),
        (["--accelerator_config", "nowhere.json"], "nowhere.json"),
    ],
)
def test_values_that_cannot_be_are_refused_in_few_words(tmp_path, flags, told):
    with pytest.raises(ConfigError) as caught:
        distilled(tmp_path, *flags)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_mapping_in_a_file_reaches_transformers(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 0.001}\neval_strategy: no\n")
    config = distilled(tmp_path, "--config", str(path))[3]
    assert config.lr_scheduler_kwargs == {"min_lr": 0.001}
    assert config.eval_strategy.value == "no"


def test_a_file_may_use_every_name_that_a_flag_has(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("strict: true\nteacher_model_name_or_path: t\nstudent_model_name_or_path: null\nmax-steps: 7\n")
    pair, data, _, config = distilled(tmp_path, "--config", str(path))
    assert (data.strict_data, pair.teacher, pair.student, config.max_steps) == (True, "t", None, 7)


def test_without_flags_options_are_those_that_python_has(tmp_path):
    pair, data, method, config = distilled(tmp_path)
    assert (pair, data, method) == (PairOptions(), DataOptions(), MethodOptions())
    assert config.given == DistillationConfig(output_dir=str(tmp_path), use_cpu=True).given
