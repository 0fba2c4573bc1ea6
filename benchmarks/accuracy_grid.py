"""What is to be trained: one YAML file as datasets, pairs, methods and the cells that they make, in order."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from qskd.errors import ConfigError

BASELINE = "none"
_NAME = re.compile(r"(?P<base>[^\[\]/]+)(\[(?P<flags>[^\[\]/]*)\])?")

Flags = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images, and how long models of the benchmark train on them."""

    name: str
    drawn: Mapping[str, Any] | None = None  # arguments of ``draw_dataset``; None: a folder that somebody has
    teacher_drawn: Mapping[str, Any] | None = None  # scenes of the teacher's own
    teacher_start: str | None = None  # the dataset whose teacher this one's begins as
    flags: Flags = field(default_factory=dict)
    teacher_flags: Flags = field(default_factory=dict)
    student_flags: Flags = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """A teacher and a student."""

    name: str
    student: str  # configuration, a file of the repository
    teacher: str | None = None  # what is trained: a configuration, or a folder of weights to begin with
    trained: str | None = None  # a teacher that needs no training, instead
    student_backbone_weights: str | None = None  # hub id, for what does not begin as the teacher
    other_family: bool = False  # whether the student has nothing to inherit from the teacher
    teacher_flags: Flags = field(default_factory=dict)
    student_flags: Flags = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Method:
    """What is done to a student."""

    name: str
    method: str | None = None  # of `qskd distill`; None trains without a teacher
    flags: Flags = field(default_factory=dict)

    @property
    def learns_alone(self) -> bool:
        """Whether it learns from labels alone, wherever it begins."""
        return self.method in (None, "none")

    @property
    def begins_anew(self) -> bool:
        """Whether it begins with random weights even where the teacher's would fit."""
        return self.method is None or str(self.flags.get("inherit")).lower() == "false"  # also as written in brackets


@dataclass(frozen=True, slots=True)
class Search:
    """The choice of every method's learning rate, on a part of the training split."""

    holdout: float
    seeds: tuple[int, ...]  # of the trials of a rate, whose mean counts
    steps: float  # of a trial, as a share of a cell's
    factors: tuple[float, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One training of a student."""

    dataset: str
    pair: str
    method: str
    seed: int
    curve: int = 0  # how often AP is measured during training
    search: float | None = None  # the factor on the learning rate that this cell tries on the held-out part

    @property
    def name(self) -> str:
        """Where it lies, below the runs."""
        room = "cells" if self.search is None else "search"
        last = f"seed{self.seed}" if self.search is None else f"factor{self.search:g}-seed{self.seed}"
        return f"{room}/{self.dataset}/{self.pair}/{self.method}/{last}"

    @property
    def row(self) -> tuple[str, str]:
        """What its AP can be compared within."""
        return (self.dataset, self.pair)


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the grid: every dataset with every pair, method and seed."""

    datasets: tuple[str, ...]
    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    curve: int = 0


@dataclass(frozen=True, slots=True)
class Grid:
    """The whole file."""

    datasets: Mapping[str, Dataset]
    pairs: Mapping[str, Pair]
    methods: Mapping[str, Method]
    sweeps: tuple[str, ...]  # names of methods
    blocks: tuple[Block, ...]
    search: Search | None
    template: str | None
    flags: Flags
    teacher_flags: Flags
    student_flags: Flags

    def method(self, name: str) -> Method:
        """A method by its name, flags in brackets included: ``qskd[selection_cap=3]``.

        Raises:
            ConfigError: there is none.
        """
        found = _NAME.fullmatch(name)
        if found is None or found["base"] not in self.methods:
            raise ConfigError(f"There is no method '{name}' in the grid. Methods: {', '.join(self.methods)}.")
        base = self.methods[found["base"]]
        pairs = [pair.partition("=") for pair in (found["flags"] or "").split(",") if pair]
        flags = {flag.strip(): value.strip() for flag, _, value in pairs}
        return replace(base, name=name, flags={**base.flags, **flags})

    def cells(self, only: Sequence[str] = (), seeds: Sequence[int] | None = None) -> list[Cell]:
        """Every cell once, in the order of the file's blocks; within a block seed by seed, then dataset by dataset.

        Args:
            only: keep cells whose dataset, pair, method or seed is among these; of several kinds, all must be met.
            seeds: instead of those of the file.
        """
        found: dict[str, Cell] = {}
        for block in self.blocks:
            for seed, dataset, pair, method in product(
                seeds if seeds is not None else block.seeds, block.datasets, block.pairs, block.methods
            ):
                cell = Cell(dataset, pair, method, seed, block.curve)
                found.setdefault(cell.name, cell)
        return filtered(list(found.values()), only)

    def curve_of(self, cell: Cell) -> int:
        """How often AP is measured in the training of a cell."""
        rows = [
            block
            for block in self.blocks
            if cell.dataset in block.datasets and cell.pair in block.pairs and cell.method in block.methods
        ]
        own = [block for block in rows if cell.seed in block.seeds]
        return next((block.curve for block in [*own, *rows]), 0)

    def search_cells(self, cells: Iterable[Cell]) -> list[Cell]:
        """The trials that choose the learning rates of these cells' methods."""
        if self.search is None:
            return []
        rows = dict.fromkeys((cell.dataset, cell.pair, self.searched_as(cell.method)) for cell in cells)
        return [
            trial
            for dataset, pair, method in rows
            if method in self.search.methods
            for factor in self.search.factors
            for trial in self.trials(Cell(dataset, pair, method, 0), factor)
        ]

    def trials(self, cell: Cell, factor: float) -> list[Cell]:
        """The trials of a cell's method at a factor on its learning rate, one for each seed of the search."""
        seeds = self.search.seeds if self.search is not None else ()
        return [replace(cell, seed=seed, search=factor) for seed in seeds]

    def searched_as(self, method: str) -> str:
        """The method whose search a method shares: that without the flags in brackets."""
        return method.partition("[")[0]

    def with_dataset(self, name: str, template: str | None = None) -> "Grid":
        """With one more dataset, trained as another one is, in the first block that names that and trains its teacher.

        Raises:
            ConfigError: there is no such template, or no block trains a teacher on it.
        """
        template = template or self.template
        if template not in self.datasets:
            raise ConfigError(f"'{name}' is no dataset of the grid, and its template '{template}' is none either.")
        if not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"'{name}' is no name for a dataset: give letters, digits, '_', '-' and '.'.")
        # What the template's images are, and which dataset's teacher its own begins as, says nothing of other images; a
        # pair whose teacher begins with weights is one of any images.
        new = replace(self.datasets[template], name=name, drawn=None, teacher_drawn=None, teacher_start=None)
        blocks = list(self.blocks)
        fitting = [place for place, block in enumerate(blocks) if template in block.datasets and self._trains(block)]
        if not fitting:
            raise ConfigError(f"No block of the grid trains a teacher on '{template}', the template of '{name}'.")
        place = fitting[0]
        blocks[place] = replace(blocks[place], datasets=(*blocks[place].datasets, name))
        return replace(self, datasets={**self.datasets, name: new}, blocks=tuple(blocks))

    def _trains(self, block: Block) -> bool:
        """Whether the teachers of a block learn its own classes."""
        return all(self.pairs[pair].trained is None for pair in block.pairs)


def filtered(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells that meet every kind of words among ``only``: datasets, pairs, methods, seeds.

    Raises:
        ConfigError: a word is none of these.
    """
    kinds: dict[str, set[str]] = {}
    for word in only:
        kind = next((kind for kind in ("dataset", "pair", "method", "seed") if word in _known(cells, kind)), None)
        if kind is None:
            raise ConfigError(f"--only {word}: no dataset, pair, method or seed of the grid is called so.")
        kinds.setdefault(kind, set()).add(word)
    chosen = [cell for cell in cells if all(str(getattr(cell, kind)) in words for kind, words in kinds.items())]
    if not chosen:
        raise ConfigError(f"--only {' '.join(only)}: every word is known, but no cell of the grid has all of them.")
    return chosen


def _known(cells: Iterable[Cell], kind: str) -> set[str]:
    return {str(getattr(cell, kind)) for cell in cells}
