"""Options from the command line and from ``--config run.yaml``; flags win over the file."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from qskd.errors import ConfigError


def parse(command: str, description: str, kinds: Sequence[type], arguments: Sequence[str]) -> tuple[Any, ...]:
    """One instance of every dataclass in ``kinds``.

    Raises:
        ConfigError: the file cannot be read, or names an option that does not exist.
        SystemExit: the arguments cannot be parsed (status 2), or help was asked for (0).
    """
    parser = HfArgumentParser(kinds, prog=f"qskd {command}", description=description)
    rest, config = _split_config(list(arguments))
    if config is not None:
        parser.set_defaults(**_read_yaml(config, {action.dest for action in parser._actions}))
        for action in parser._actions:
            action.required = False
    return tuple(parser.parse_args_into_dataclasses(args=rest, look_for_args_file=False))


def _split_config(arguments: list[str]) -> tuple[list[str], Path | None]:
    for position, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return arguments[:position] + arguments[position + 1 :], Path(argument.split("=", 1)[1])
        if argument == "--config":
            if position + 1 == len(arguments):
                raise ConfigError("--config takes a YAML file.")
            return arguments[:position] + arguments[position + 2 :], Path(arguments[position + 1])
    return arguments, None


def _read_yaml(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError as error:
        raise ConfigError(f"--config {path}: there is no such file.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} holds no `option: value` lines.")
    for name in content:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"--config {path}: there is no option '{name}'.{hint}")
    return content


def show(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)
    sys.stdout.flush()
