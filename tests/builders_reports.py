"""Records and folders of runs that never took place, for reports."""

import html.parser
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qskd.evaluation.matching import Matches
from qskd.reporting.closeup import CloseUp, Shown, extremes_of, model_closeups
from qskd.reporting.groups import group_runs, teachers_of
from qskd.reporting.intervals import contrasts_of, sample_all, scores_of
from qskd.reporting.records import RunRecord

TEACHER = {
    "metrics": {"AP": 0.5, "AP50": 0.7, "per_class": {"cat": 0.6, "dog": 0.4}, "num_images": 6},
    "cost": {"parameters": 4_000_000, "gflops": 8.0, "latency_ms": 20.0, "latency_p90_ms": 25.0, "device": "cpu"},
    "fingerprint": "f" * 64,
}


def summary(**changes: Any) -> dict[str, Any]:
    """The content of a summary.json; ``AP`` sets the metrics, everything else a field."""
    ap = changes.pop("AP", 0.3)
    content: dict[str, Any] = {
        "name": "run",
        "kind": "train",
        "method": "none",
        "family": "rt_detr",
        "seed": 0,
        "steps": 100,
        "train_seconds": 60.0,
        "resumed": False,
        "train_images": 16,
        "image_size": [64],
        "environment": {"torch": "2.11", "platform": "Linux"},
        "metrics": {
            "AP": ap,
            "AP50": None if ap is None else ap * 1.5,
            "AP75": None if ap is None else ap * 0.9,
            "AP_small": None,
            "AP_medium": ap,
            "AP_large": ap,
            "per_class": {"cat": ap, "dog": None},
            "num_images": 6,
        },
        "cost": {"parameters": 1_000_000, "gflops": 1.0, "latency_ms": 5.0, "latency_p90_ms": 6.0, "device": "cpu"},
    }
    if changes.get("kind") == "distill":
        content |= {"method": "qskd", "teacher": TEACHER}
    return content | changes


def record(name: str, *, config: dict[str, Any] | None = None, log: Any = (), **changes: Any) -> RunRecord:
    """A run as a report sees it."""
    validation = changes.pop("validation", None)
    taught = changes.pop("taught", None)
    return RunRecord.from_summary(
        name, summary(**changes), config=config or {}, log=log, validation=validation, taught=taught
    )


def entries(steps: int = 4, ap: float = 0.3, **parts: float) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl: a loss that falls, an AP that rises."""
    losses = [{"step": step, "loss": 10 / step, "grad_norm": 1.0} | parts for step in range(1, steps + 1)]
    return [*losses, {"step": steps // 2, "eval_AP": ap / 2}, {"step": steps, "eval_AP": ap}]


def write_run(
    folder: Path,
    *,
    model: Path | None = None,
    config: dict[str, Any] | None = None,
    log: Any = None,
    **changes: Any,
) -> Path:
    """A run folder with these files, and a copy of the model as its best weights."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary(name=folder.name, **changes)))
    (folder / "config.yaml").write_text("# qskd train\n" + yaml.safe_dump(config or {}))
    lines = entries(loss_bbox=1.0, loss_bbox_aux_0=2.0) if log is None else log
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if model is not None:
        shutil.copytree(model, folder / "best")
    return folder


EVIL = "<script>alert(1)</script> | \"quoted\" 'x' & `tick` [a](javascript:b) $\\x{"
"""What a name may hold at worst."""


class Page(html.parser.HTMLParser):
    """Tags, texts and addresses of a page, and whether every tag was closed in order."""

    VOID = frozenset(["meta", "img", "br", "path", "use", "line", "input"])

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.addresses, self.ids, self._open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[key] for key in ("src", "href", "xlink:href", "action") if key in found]
        assert not [key for key in found if key.startswith("on")]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[key] for key in ("href", "xlink:href") if key in found]

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        while tag != self._open[-1] and self._open[-1] in {"li", "p", "dt", "dd"}:
            self._open.pop()
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def closeup_of(runs: Sequence[RunRecord], matches: Mapping[str, Matches], draws: int = 20) -> CloseUp:
    """What a report says of these detections, by name of the run; the first run of each group is shown."""
    groups, teachers = group_runs(runs), teachers_of(runs)
    sampled = sample_all(matches, draws)
    truth = next(iter(matches.values())).truth
    shown = [Shown(name, name, name, "teacher") for name in teachers]
    shown += [Shown(group.label, group.label, group.first.name, group.role) for group in groups]
    names = {id_: f"{id_}.png" for id_ in truth.image_ids}
    return CloseUp(
        scores_of(groups, list(teachers), sampled),
        contrasts_of(groups, {one.fingerprint: name for name, one in teachers.items()}, sampled),
        model_closeups(shown, matches),
        extremes_of(groups, shown, matches, names, 2),
        dict(zip(truth.class_names, truth.objects().sum(axis=0).tolist(), strict=True)),
        len(truth.image_ids),
        draws,
    )


def panel_titles(page: Path) -> list[str]:
    """What stands under the pictures of a report, each once."""
    return list(dict.fromkeys(re.findall(r"<figcaption><b>(.*?)</b>", page.read_text("utf-8"))))
