"""From records to numbers and Markdown: means over seeds, paired differences, the cost of the baseline's AP."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from accuracy_grid import BASELINE
from accuracy_records import Record
from scipy.stats import t

from qskd.losses.presets import PRESETS, options_of, resolve

CONFIDENCE = 0.95
METHOD = "qskd"  # what every row is compared with, beside the baseline


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds."""

    mean: float
    deviation: float | None  # standard deviation; None for one seed
    count: int


@dataclass(frozen=True, slots=True)
class Paired:
    """How much higher AP is than the baseline's, seed by seed."""

    mean: float
    error: float | None  # standard error of the mean; None for one seed
    half_width: float | None  # of the confidence interval of the mean, Student's t
    count: int

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside of the interval."""
        return self.half_width is not None and abs(self.mean) > self.half_width


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method on one dataset with one pair."""

    method: str
    records: tuple[Record, ...]
    ap: Spread
    ap50: Spread | None
    gain: Paired | None  # None for the baseline, and where no seed is shared with it
    behind: Paired | None  # how much higher the method's own AP is than this; None for the method itself
    share_of_steps: float | None  # steps until the baseline's final AP, as a share of the baseline's; None: never
    share_of_time: float | None  # the same in seconds


@dataclass(frozen=True, slots=True)
class Table:
    """One dataset with one pair."""

    dataset: str
    pair: str
    rows: tuple[MethodRow, ...]  # the baseline first, then as the records come

    def row(self, method: str) -> MethodRow | None:
        """A method's row, if it has one."""
        return next((row for row in self.rows if row.method == method), None)


def tables_of(records: Iterable[Record]) -> list[Table]:
    """One table for each dataset, pair and kind of device, in the order of the records."""
    groups: dict[tuple[str, str, str], dict[str, list[Record]]] = {}
    for record in records:
        key = (record.dataset, record.pair, record.device.split(",")[0])
        groups.setdefault(key, {}).setdefault(record.method, []).append(record)
    return [Table(dataset, pair, _rows(methods)) for (dataset, pair, _), methods in groups.items()]


def _rows(methods: dict[str, list[Record]]) -> tuple[MethodRow, ...]:
    baseline = methods.get(BASELINE, [])
    names = sorted(methods, key=lambda name: name != BASELINE)  # stable: the rest stays in its order
    return tuple(_row(name, methods[name], baseline, methods.get(METHOD, [])) for name in names)


def _row(name: str, records: Sequence[Record], baseline: Sequence[Record], method: Sequence[Record]) -> MethodRow:
    ap50 = [record.ap50 for record in records if record.ap50 is not None]
    of_steps, of_time = cost_shares(records, baseline)
    return MethodRow(
        name,
        tuple(records),
        spread([record.ap for record in records]),
        spread(ap50) if ap50 else None,
        None if name == BASELINE else paired(records, baseline),
        None if name == METHOD else paired(method, records),
        of_steps,
        of_time,
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def paired(records: Sequence[Record], baseline: Sequence[Record]) -> Paired | None:
    """The mean difference over the seeds that both have; None where there are none."""
    theirs = {record.seed: record.ap for record in baseline}
    gains = [record.ap - theirs[record.seed] for record in records if record.seed in theirs]
    if not gains:
        return None
    if len(gains) == 1:
        return Paired(gains[0], None, None, 1)
    quantile = float(t.ppf(0.5 + CONFIDENCE / 2, len(gains) - 1))
    error = stdev(gains) / math.sqrt(len(gains))
    return Paired(mean(gains), error, quantile * error, len(gains))


def cost_shares(records: Sequence[Record], baseline: Sequence[Record]) -> tuple[float | None, float | None]:
    """When a method's mean curve first reaches the baseline's mean final AP, as shares of all its steps and time.

    Between two evaluations AP is taken to grow evenly. None where it is never reached, or nothing was measured on the
    way. Only seeds that both have count.
    """
    seeds = {record.seed for record in records} & {record.seed for record in baseline}
    ours = [record for record in records if record.seed in seeds and record.curve]
    theirs = [record for record in baseline if record.seed in seeds]
    if not theirs or not has_one_curve(ours):
        return None, None
    steps = crossing(mean_curve(ours), mean(record.ap for record in theirs))
    if steps is None:
        return None, None
    own, base = seconds_per_step(ours), seconds_per_step(theirs)
    share = steps / mean(record.steps for record in theirs)
    return share, share * own / base if own is not None and base else None


def has_one_curve(records: Sequence[Record]) -> bool:
    """Whether AP was measured on the way, after the same steps in all records."""
    return len({tuple(step for step, _ in one.curve) for one in records}) == 1 and bool(records[0].curve)


def mean_curve(records: Sequence[Record]) -> list[tuple[int, float]]:
    """The mean AP over records after each number of steps that was measured."""
    steps = [step for step, _ in records[0].curve]
    return list(zip(steps, np.mean([[ap for _, ap in one.curve] for one in records], axis=0).tolist(), strict=True))


def crossing(curve: Sequence[tuple[int, float]], wanted: float) -> float | None:
    """The steps after which a curve that begins at (0, 0) first is as high as wanted; None for never."""
    before = (0, 0.0)
    for step, ap in curve:
        if ap >= wanted:
            rise = ap - before[1]
            return before[0] + (step - before[0]) * (wanted - before[1]) / rise if rise > 0 else float(step)
        before = (step, ap)
    return None


def seconds_per_step(records: Sequence[Record]) -> float | None:
    """The median over records, so that one run on a busy machine does not count."""
    known = [record.train_seconds / record.steps for record in records if record.train_seconds is not None]
    return float(np.median(known)) if known else None


# ---- Markdown ------------------------------------------------------------------------------------------------------


def as_markdown(tables: Sequence[Table]) -> str:
    """All tables, AP in percent."""
    return "\n\n".join(_markdown(table) for table in tables) + "\n" if tables else "No cell is finished yet.\n"


def _markdown(table: Table) -> str:
    head = (
        f"| method | seeds | AP | AP50 | over {BASELINE} | {CONFIDENCE:.0%} interval | {METHOD} over this "
        f"| {CONFIDENCE:.0%} interval | reaches {BASELINE}'s AP after (steps, time) | s/step |"
    )
    lines = [f"### {table.dataset}, {table.pair}", "", _about(table), "", head, "|---" * head.count(" | ") + "|---|"]
    lines += [_line(row) for row in table.rows]
    return "\n".join([*lines, *_notes(table)])


def _about(table: Table) -> str:
    rows = sorted(table.rows, key=lambda row: (row.records[0].teacher_ap is None, row.method != METHOD))
    some = rows[0].records[0]
    teacher = f"teacher AP {_percent(some.teacher_ap)}" if some.teacher_ap is not None else "teacher not measured yet"
    sizes = " of ".join(_millions(count) for count in (some.parameters, some.teacher_parameters) if count is not None)
    edges = " x ".join(str(edge) for edge in some.image_size)
    return f"{teacher}; {sizes} parameters; {some.train_images} images, {edges} px, {some.steps} steps; {some.device}"


def _line(row: MethodRow) -> str:
    seconds = seconds_per_step(row.records)
    cells = [
        row.method,
        ", ".join(str(record.seed) for record in row.records),
        _with_spread(row.ap),
        _with_spread(row.ap50) if row.ap50 else "",
        _with_error(row.gain),
        _interval(row.gain),
        _with_error(row.behind),
        _interval(row.behind),
        _shares(row),
        f"{seconds:.3g}" if seconds is not None else "",
    ]
    return f"| {' | '.join(cells)} |"


def _notes(table: Table) -> list[str]:
    records = [record for row in table.rows for record in row.records]
    notes = []
    changed = sum(record.changed for record in records)
    if changed:
        notes.append(f"{changed} of {len(records)} cells were trained with other settings than the grid now says.")
    rates = {(record.method, record.learning_rate) for record in records if record.learning_rate is not None}
    if rates:
        notes.append(f"Learning rates: {', '.join(f'{method} {rate:g}' for method, rate in sorted(rates))}.")
    unsearched = sorted({record.method for record in records if not record.searched})
    if unsearched:
        notes.append(f"Not searched: {', '.join(unsearched)}.")
    notes += _other_options(records)
    shares = {record.method: record.inherited for record in records if record.inherited is not None}
    notes += [
        f"{name} began with the teacher's values in {share:.0%} of its weights." for name, share in shares.items()
    ]
    for kind in ("commit", "device", "teacher"):
        found = sorted({str(value) for record in records if (value := getattr(record, kind)) is not None})
        notes += [f"Of more than one {kind}: {', '.join(found)}."] if len(found) > 1 else []
    return ["", *[f"- {note}" for note in notes]] if notes else []


def _other_options(records: Iterable[Record]) -> list[str]:
    """Which presets have other options by now than the cells were trained with."""
    found: dict[str, list[int]] = {}
    for record in records:
        if record.method not in (BASELINE, "inheritance") and not record.options:
            found.setdefault(f"The options of {record.method} were not recorded", []).append(record.seed)
        preset = record.preset or record.method.partition("[")[0].removesuffix("_from_scratch")
        now = options_of(resolve(preset)) if preset in PRESETS else {}
        for name, value in record.options.items():
            if name in now and now[name] != value:
                told = f"{record.method} was trained with {name} {value}, which is {now[name]} by now"
                found.setdefault(told, []).append(record.seed)
    return [f"{told} (seeds {', '.join(map(str, seeds))})." for told, seeds in found.items()]


def _with_spread(one: Spread) -> str:
    return _percent(one.mean) + (f" ± {_percent(one.deviation)}" if one.deviation is not None else "")


def _with_error(gain: Paired | None) -> str:
    """A mean difference and its standard error."""
    if gain is None:
        return ""
    return f"{100 * gain.mean:+.1f}" + (f" ± {_percent(gain.error)}" if gain.error is not None else " (one seed)")


def _interval(gain: Paired | None) -> str:
    if gain is None or gain.half_width is None:
        return ""
    return f"{100 * (gain.mean - gain.half_width):+.1f} to {100 * (gain.mean + gain.half_width):+.1f}"


def _shares(row: MethodRow) -> str:
    if row.share_of_steps is None:
        return "not reached" if has_one_curve(row.records) and row.gain is not None else ""
    time = f", {row.share_of_time:.0%}" if row.share_of_time is not None else ""
    return f"{row.share_of_steps:.0%}{time}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"
