"""Reading a grid from its YAML file, everything in it checked."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from accuracy_grid import BASELINE, Block, Dataset, Grid, Method, Pair, Search

from qskd.errors import ConfigError

_Named = TypeVar("_Named", Dataset, Pair, Method)


def read_grid(path: Path) -> Grid:
    """The grid of a file.

    Raises:
        ConfigError: the file cannot be read, or something in it does not exist or fit.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--grid {path} cannot be read ({error.strerror}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--grid {path} is not YAML: {error}") from error
    grid = grid_of(content)
    _check(grid)
    return grid


def grid_of(content: Any) -> Grid:
    """The grid of a file's content.

    Raises:
        ConfigError: a part is missing or unknown.
    """
    known = {entry.name for entry in fields(Grid)}
    _check_keys("the grid", content, known, {"datasets", "pairs", "methods", "blocks"})
    search = content.get("search")
    return Grid(
        datasets=_named(Dataset, content["datasets"]),
        pairs=_named(Pair, content["pairs"]),
        methods=_named(Method, content["methods"]),
        sweeps=_sweeps(content.get("sweeps") or {}),
        blocks=tuple(_block(block) for block in content["blocks"]),
        search=_search(search) if search else None,
        template=content.get("template"),
        flags=content.get("flags") or {},
        teacher_flags=content.get("teacher_flags") or {},
        student_flags=content.get("student_flags") or {},
    )


def _named(kind: type[_Named], content: Mapping[str, Any]) -> dict[str, _Named]:
    known = {entry.name for entry in fields(kind)} - {"name"}
    for name, options in content.items():
        _check_keys(f"{kind.__name__.lower()} '{name}'", options, known, {"student"} if kind is Pair else set())
    return {str(name): kind(name=str(name), **options) for name, options in content.items()}


def _block(content: Any) -> Block:
    known = {entry.name for entry in fields(Block)}
    _check_keys("a block", content, known, {"datasets", "pairs", "methods", "seeds"})
    lists = {name: tuple(content[name]) for name in ("datasets", "pairs", "methods", "seeds")}
    return Block(**{**content, **lists})


def _search(content: Any) -> Search:
    known = {entry.name for entry in fields(Search)}
    _check_keys("search", content, known, known)
    for name in ("seeds", "factors", "methods"):
        if not isinstance(content[name], list) or not content[name]:
            raise ConfigError(f"search: {name} is {content[name]!r}; expected a list of at least one.")
    try:
        return Search(
            float(content["holdout"]),
            tuple(int(str(seed)) for seed in content["seeds"]),
            float(content["steps"]),
            tuple(float(factor) for factor in content["factors"]),
            tuple(content["methods"]),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"search: {error}; holdout, steps and factors are numbers, seeds are whole ones.") from error


def _sweeps(content: Mapping[str, Mapping[str, list[Any]]]) -> tuple[str, ...]:
    return tuple(
        f"{base}[{flag}={value}]"
        for base, flags in content.items()
        for flag, values in flags.items()
        for value in values
    )


def _check_keys(what: str, content: Any, known: set[str], needed: set[str]) -> None:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{what} is {content!r}; expected names with values.")
    unknown, missing = sorted(set(map(str, content)) - known), sorted(needed - set(content))
    if unknown or missing:
        problem = f"has an unknown key '{unknown[0]}'" if unknown else f"lacks '{missing[0]}'"
        raise ConfigError(f"{what} {problem}. Keys: {', '.join(sorted(known))}.")


def _check(grid: Grid) -> None:
    """Refuse names that nothing is called."""
    if BASELINE not in grid.methods or grid.methods[BASELINE].method is not None:
        raise ConfigError(f"methods must hold '{BASELINE}', the student without a teacher.")
    for pair in grid.pairs.values():
        if (pair.teacher is None) == (pair.trained is None):
            raise ConfigError(
                f"pair '{pair.name}': give either teacher (a configuration or a folder that is trained) or "
                "trained (a folder)."
            )
    for block in grid.blocks:
        _check_names("datasets", block.datasets, grid.datasets)
        _check_names("pairs", block.pairs, grid.pairs)
    for dataset in grid.datasets.values():
        if dataset.teacher_start is not None:
            _check_names("datasets", [dataset.teacher_start], grid.datasets)
    seeds = {seed for block in grid.blocks for seed in block.seeds}
    if grid.search is not None and seeds & set(grid.search.seeds):
        raise ConfigError(f"search: seed {min(seeds & set(grid.search.seeds))} is a block's, too; give another.")
    named = [name for block in grid.blocks for name in block.methods]
    for name in (*named, *grid.sweeps, *(grid.search.methods if grid.search else ())):
        grid.method(name)


def _check_names(kind: str, names: Iterable[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"'{name}' is none of the {kind}: {', '.join(known)}.")
