"""Does distillation help? ``python benchmarks/accuracy.py``; docs/benchmarks.md says how to read it.

Trains every cell of a grid (dataset x pair x method x seed) as a normal qskd run, goes on where an earlier call was
stopped, and writes records (benchmarks/results/accuracy.json), tables (accuracy.md) and plots. AP is a fraction in
[0, 1] in the records, in percent in tables and plots.
"""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from accuracy_commands import REPOSITORY, command_line
from accuracy_grid import Cell, Grid
from accuracy_preparing import PARENT, ap_of, find_data
from accuracy_reading import read_grid
from accuracy_records import load_records, merge_records, read_records
from accuracy_running import Runner
from accuracy_states import Task, state_of, take_lock
from accuracy_tables import as_markdown, tables_of
from accuracy_tasks import Workplace
from transformers.utils import logging

from qskd.errors import QskdError

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "accuracy.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when all that was asked for is done, 1 when not, 2 for bad input."""
    options = _parser().parse_args(arguments, argparse.Namespace(began=time.monotonic()))
    logging.disable_progress_bar()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # runs are ended, never left behind
    try:
        return _run(options)
    except QskdError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("accuracy: interrupted; the same command goes on", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.out.is_file():
        load_records(options.out)  # refused now rather than after the trainings
    place, cells, is_whole = _open(options)
    if options.search or options.sweeps:
        _check_search(place, cells, options)
        return _search(place, cells, options)
    if options.summarise:
        _summarise(place, options)
        return 0
    _say_unsearched(place, cells)
    finished = _carry_out(place, cells, options)
    if not (options.list or options.dry_run):
        _summarise(place, options)
    return 0 if finished and is_whole else 1


def _search(place: Workplace, cells: Sequence[Cell], options: argparse.Namespace) -> int:
    """The trials of the search, then those of the sweeps, at the learning rates that it has chosen."""
    trials = place.grid.search_cells(cells) if options.search else []
    finished = [_carry_out(place, trials, options)] if trials else []
    left = [cell.name for cell in trials if state_of(place.task(cell)) in ("open", "begun", "changed")]
    if left and options.sweeps and not (options.list or options.dry_run):
        print(f"the sweeps wait for these, which choose their learning rate: {', '.join(left)}")
    elif options.sweeps:
        sweeps = place.sweep_cells(cells)
        _say_unsearched(place, sweeps)
        finished.append(_carry_out(place, sweeps, options))
        trials += sweeps
    if options.dry_run:
        return 0
    stale = [_say_result(place, cell) for cell in dict.fromkeys(trials)]
    if options.list:
        return 0
    if any(stale):
        print("Trials that were made otherwise than they would be now choose nothing; --redo makes them again.")
    return 0 if all(finished) and not any(stale) else 1


def _say_result(place: Workplace, trial: Cell) -> bool:
    """Print a trial's AP; whether it was made otherwise than it would be now."""
    ap = ap_of(place.runs / trial.name)
    is_stale = state_of(place.task(trial)) == "changed"
    told = "-" if ap is None else format(100 * ap, ".1f")
    print(f"{told:>6}  {trial.name}{' (made otherwise)' if is_stale else ''}")
    return is_stale


def _say_unsearched(place: Workplace, cells: Sequence[Cell]) -> None:
    """Say which methods that the search covers have no complete one."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        method = place.grid.searched_as(cell.method)
        if place.grid.search is not None and method in place.grid.search.methods and not place.is_searched(cell):
            lacking.setdefault(cell.row, []).append(method)
    for (dataset, pair), methods in lacking.items():
        names = ", ".join(dict.fromkeys(methods))
        _remark(f"{dataset}/{pair}: no complete search (--search) for {names}: the learning rate is the grid's own")


def _check_search(place: Workplace, cells: Sequence[Cell], options: argparse.Namespace) -> None:
    if options.summarise:
        raise QskdError("--summarise makes tables of cells; --search and --sweeps have none.")
    if place.grid.search is None:
        raise QskdError(f"--grid {options.grid} has no section 'search', which --search and --sweeps need.")
    if options.seeds is not None:
        raise QskdError("--seeds chooses cells; trials have the seeds of the grid's section 'search'.")
    if options.sweeps and not place.sweep_cells(cells):
        varied = ", ".join(dict.fromkeys(map(place.grid.searched_as, place.grid.sweeps))) or "nothing"
        raise QskdError(f"--sweeps: the grid varies {varied}, which is not among the methods that --only leaves.")


def _carry_out(place: Workplace, wanted: Sequence[Cell], options: argparse.Namespace) -> bool:
    """Train cells, or show them; whether nothing is left to do."""
    if options.redo:
        _forget_changed(place, wanted, options.list or options.dry_run)
    tasks = place.tasks(wanted)
    if options.list or options.dry_run:
        show = _show_commands if options.dry_run else _show_states
        show(tasks)
        return True
    place.runs.mkdir(parents=True, exist_ok=True)
    environment = _environment(options)
    return Runner(tasks, options.jobs, options.minutes, options.lean, environment, options.began).run()


def _open(options: argparse.Namespace) -> tuple[Workplace, list[Cell], bool]:
    """The workplace, the cells, and whether these are all; says which are left out since their data are nowhere."""
    if options.jobs < 1:
        raise QskdError(f"--jobs is {options.jobs}; give at least 1.")
    grid = read_grid(options.grid)
    given = {name: Path(folder) for name, folder in map(_named, options.data)}
    for name in given:
        if name not in grid.datasets:
            grid = grid.with_dataset(name, options.template)
    data = {name: folder for name in grid.datasets if (folder := find_data(name, given)) is not None}
    teachers = {name: Path(folder).resolve() for name, folder in map(_named, options.teacher)}
    _check_teachers(grid, teachers)
    place = Workplace(grid, options.runs.resolve(), data, teachers)
    taken = set(options.seeds or ()) & set(grid.search.seeds if grid.search is not None else ())
    if taken:
        raise QskdError(f"--seeds {min(taken)}: the search has chosen the learning rates with this seed; give others.")
    cells = grid.cells(options.only, options.seeds)
    lacking = {cell.dataset: place.missing_data(cell) for cell in cells}
    for name, where in lacking.items():
        if where is not None:
            _remark(f"left out {name}: where is {where}? --data {where}=FOLDER, or {PARENT}=FOLDER that holds {where}/")
    known = [cell for cell in cells if lacking[cell.dataset] is None]
    return place, known, len(known) == len(cells) or not options.only


def _check_teachers(grid: Grid, teachers: dict[str, Path]) -> None:
    for name, folder in teachers.items():
        dataset, _, pair = name.partition("/")
        if dataset not in grid.datasets or (pair and pair not in grid.pairs):
            raise QskdError(f"--teacher {name}=...: the grid has no such dataset or pair.")
        if not (folder / "config.json").is_file():
            raise QskdError(f"--teacher {name}={folder}: no config.json there; give a from_pretrained folder.")


def _named(text: str) -> tuple[str, str]:
    name, sign, folder = text.partition("=")
    if not sign or not name or not folder:
        raise QskdError(f"'{text}' is no NAME=FOLDER.")
    return name, folder


def _forget_changed(place: Workplace, cells: Sequence[Cell], only_say: bool) -> None:
    """Move runs aside that were made with other settings than the grid now says, and what came of them."""
    moved: set[str] = set()
    for name, task in place.tasks(cells).items():  # each behind what it needs
        if state_of(task) == "changed" or (moved.intersection(task.needs) and task.folder.exists() and task.command):
            aside = next(path for number in range(1, 1000) if not (path := Path(f"{task.folder}.old{number}")).exists())
            if only_say or _move(task, aside):
                moved.add(name)
                print(f"{task.name}: made otherwise than it would be now; to {aside.name}")
            else:  # and what came of it stays as well
                print(f"{task.name}: made otherwise than it would be now, but is being trained by another call")


def _move(task: Task, aside: Path) -> bool:
    """Rename a task's folder, unless another call is at work there."""
    lock = take_lock(task.folder)
    if lock is None:
        return False
    task.folder.rename(aside)
    os.close(lock)
    return True


def _environment(options: argparse.Namespace) -> dict[str, str]:
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    path = os.pathsep.join(filter(None, [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]))
    return {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


def _show_states(tasks: dict[str, Task]) -> None:
    for name, task in tasks.items():
        print(f"{state_of(task):<8} {name}")
    states = [state_of(task) for task in tasks.values()]
    changed = states.count("changed")
    print(f"{states.count('done')} of {len(tasks)} done" + (f", {changed} made otherwise (--redo)" if changed else ""))


def _show_commands(tasks: dict[str, Task]) -> None:
    for name, task in tasks.items():
        if not task.done:
            print(f"# {name}" + ("" if task.command else ": prepared by the benchmark itself"))
            if task.command:
                print(shlex.join(command_line(task)))


def _remark(text: str) -> None:
    """Print what is no part of a list of commands, so that those of --dry-run can be run."""
    print(f"# {text}")


def _summarise(place: Workplace, options: argparse.Namespace) -> None:
    """Write all records and their tables; print the tables of the rows that were chosen."""
    from accuracy_plots import plot_all

    found, problems = read_records(place)
    for problem in problems:
        print(f"left out, it cannot be read: {problem}")
    records = merge_records(found, options.out)
    tables = tables_of(records)
    place.runs.mkdir(parents=True, exist_ok=True)
    (place.runs / "accuracy.md").write_text(as_markdown(tables), encoding="utf-8")
    rows = {cell.row for cell in place.grid.cells(options.only, options.seeds)}
    print(as_markdown([table for table in tables if not options.only or (table.dataset, table.pair) in rows]))
    for path in [options.out, place.runs / "accuracy.md", *plot_all(tables, place.runs)]:
        print(f"written: {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="accuracy.py", description="Does distillation help? See docs/benchmarks.md.")
    add = parser.add_argument
    add("--grid", type=Path, default=HERE / "accuracy.yaml", metavar="FILE", help="what to train (accuracy.yaml)")
    add("--runs", type=Path, default=Path("runs/accuracy"), metavar="DIR", help="where everything goes")
    add("--out", type=Path, default=RESULTS, metavar="FILE", help="the records (benchmarks/results/accuracy.json)")
    add("--only", nargs="+", default=[], metavar="TEXT", help="datasets, pairs, methods, seeds; of each kind any")
    add("--seeds", nargs="+", type=int, metavar="N", help="instead of the grid's")
    add("--data", nargs="+", default=[], metavar="NAME=FOLDER", help="where a dataset lies, also one of your own")
    add("--template", metavar="NAME", help="whose settings a dataset of your own takes (the grid's template)")
    add("--teacher", nargs="+", default=[], metavar="DATASET[/PAIR]=FOLDER", help="use a trained teacher")
    add("--search", action="store_true", help="run the search on held-out training images instead of the cells")
    add("--sweeps", action="store_true", help="run the sweeps of single options there")
    add("--lean", action="store_true", help="remove the models of finished cells; the numbers stay")
    add("--jobs", type=int, default=1, metavar="N", help="runs side by side (1)")
    add("--threads", type=int, metavar="N", help="OMP_NUM_THREADS of each run (processors / jobs)")
    add("--minutes", type=float, metavar="M", help="stop after so long; the same command goes on")
    add("--redo", action="store_true", help="train cells again whose settings have changed")
    add("--list", action="store_true", help="show what there is to do and how far it is")
    add("--dry-run", action="store_true", help="print the commands of what is not done")
    add("--summarise", action="store_true", help="records, tables and plots of what is done")
    return parser


if __name__ == "__main__":
    sys.exit(main())
