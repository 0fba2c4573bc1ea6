"""Options from the command line and from ``--config run.yaml``; flags win over the file."""

import itertools
import json
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from qskd.errors import ConfigError
from qskd.runs.options import no_option
from qskd.runs.processes import rank

_NOTHING = ("", "~", "null", "Null", "NULL")  # YAML's ways of saying None


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without the two hundred options that are not."""
        raise ConfigError(message)

    def _get_value(self, action: Action, arg_string: str) -> Any:
        """A default that is a text stays as the dataclass has it, so that flags and Python mean the same."""
        return arg_string if arg_string == action.default else super()._get_value(action, arg_string)


class CommandParser(ArgumentParser):
    """For commands with few options: each also with hyphens, an unknown one refused with the nearest, as by ``parse``.

    Positional arguments may stand between options.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"qskd {command}", description=description, allow_abbrev=False)

    def add_argument(self, *names: Any, **settings: Any) -> Action:
        """An option by its names, and by these with hyphens."""
        hyphened = [name.replace("_", "-") for name in names if name.startswith("--")]
        return super().add_argument(*dict.fromkeys([*names, *hyphened]), **settings)

    def read(self, arguments: Sequence[str]) -> Namespace:
        """The options by name.

        Raises:
            ConfigError: an option does not exist.
            SystemExit: a value cannot be, something is missing, or help was asked for; argparse has said what.
        """
        known = [name for action in self._actions for name in action.option_strings]
        for argument in itertools.takewhile(lambda argument: argument != "--", arguments):
            if argument.startswith("--") and argument.split("=")[0] not in known:
                raise no_option(argument, known)
        if "--" in arguments:  # which parse_intermixed_args of Python 3.11 does not understand
            return self.parse_args(list(arguments))
        return self.parse_intermixed_args(list(arguments))


def parse(command: str, description: str, kinds: Sequence[type], arguments: Sequence[str]) -> tuple[Any, ...]:
    """One instance of every dataclass in ``kinds``.

    Raises:
        ConfigError: the file cannot be read, an option does not exist, or values cannot be.
        SystemExit: help was asked for.
    """
    parser = _Parser(kinds, prog=f"qskd {command}", description=description)
    parser.add_argument("--config", metavar="FILE", help="YAML file with options by name; flags win over it.")
    options = _options(parser)
    parser.set_defaults(**_defaults(kinds))
    rest, config = _split_config(list(arguments))
    if config is not None:
        rest = _from_file(parser, config, options) + rest
    try:
        *made, unknown = parser.parse_args_into_dataclasses(
            args=rest, look_for_args_file=False, return_remaining_strings=True
        )
    except ConfigError:
        raise
    except (ValueError, ImportError, OSError) as error:  # what transformers says about values that cannot be
        raise ConfigError(str(error)) from error
    if unknown:
        raise no_option(unknown[0], [f"--{name}" for name in options])
    return tuple(made[: len(kinds)])


def _options(parser: HfArgumentParser) -> dict[str, Action]:
    """Every option that takes a value, by each of its names."""
    return {
        name.removeprefix("--"): action
        for action in parser._actions
        for name in action.option_strings
        if action.nargs != 0 and action.dest != "config"
    }


def _defaults(kinds: Sequence[type]) -> dict[str, Any]:
    """What the dataclasses say: the parser forgets the default of ``debug``."""
    return {
        entry.name: entry.default
        for kind in kinds
        for entry in fields(kind)
        if entry.init and entry.default is not MISSING
    }


def _split_config(arguments: list[str]) -> tuple[list[str], Path | None]:
    for position, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return arguments[:position] + arguments[position + 1 :], Path(argument.split("=", 1)[1])
        if argument == "--config":
            if position + 1 == len(arguments):
                raise ConfigError("--config takes a YAML file.")
            return arguments[:position] + arguments[position + 2 :], Path(arguments[position + 1])
    return arguments, None


def _from_file(parser: HfArgumentParser, path: Path, options: Mapping[str, Action]) -> list[str]:
    """The file's lines as the flags that say the same, so that both are checked alike."""
    flags: list[str] = []
    for name, (text, value) in _read_yaml(path).items():
        if name not in options:
            raise ConfigError(f"--config {path}: {no_option(name, options)}")
        if isinstance(text, str) and text not in _NOTHING:
            flags.append(f"--{name}={text}")
        elif isinstance(text, list) and options[name].nargs == "+":
            flags += [f"--{name}", *text]
        elif isinstance(text, dict):
            flags.append(f"--{name}={json.dumps(value)}")
        else:
            parser.set_defaults(**{options[name].dest: value})
    return flags


def _read_yaml(path: Path) -> dict[str, tuple[Any, Any]]:
    """Every option as written and as YAML understands it, which takes ``no`` for False and ``1e-4`` for a text."""
    try:
        content = path.read_text(encoding="utf-8")
        texts, values = yaml.load(content, yaml.BaseLoader), yaml.safe_load(content)
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"--config {path} is not YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path} holds no `option: value` lines.")
    return {name: (text, value) for (name, text), value in zip(texts.items(), values.values(), strict=True)}


def show(line: str) -> None:
    """Print a line at once; of several processes, the first one does."""
    if rank() == 0:
        print(line, flush=True)
