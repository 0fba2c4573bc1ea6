"""The pages of an inspection: inspect.html, which needs nothing else, pictures, inspect.json."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from qskd.reporting.pictures import class_colour, data_uri
from qskd.reporting.query_figures import ROLE_COLOURS, depth_figures, layer_figures, save_png
from qskd.reporting.query_pictures import NUMBERED, draw_close_up, draw_heat, draw_pairs, draw_queries
from qskd.reporting.query_scene import ROLE_NAMES, Scene
from qskd.reporting.report import page_environment
from qskd.reporting.tables import number
from qskd.selection.groups import Role
from qskd.selection.statistics import Numbers, RoleNumbers

_MARKS = {
    "positive": "M7 1A6 6 0 1 1 7 13A6 6 0 1 1 7 1Z",
    "hard negative": "M2 2H12V12H2Z",
    "easy negative": "M7 2L13 12H1Z",
}  # as in the charts: circle, square, triangle

_FEW = 0.05  # of all objects: below it, that a limit is reached is not worth a word
_LISTED = 8  # objects in an image's legend; more of them are counted by class


@dataclass(frozen=True, slots=True)
class Subject:
    """What is inspected."""

    teacher: str
    family: str
    student: str | None
    is_labelled: bool  # whether objects are the data's; else they are the teacher's detections
    method: str
    threshold: float | None  # GIoU above which a query is a hard negative; None where the method has no such limit
    cap: int | None  # the most hard negatives of an object
    settings: Mapping[str, Any]  # every option of the method
    notes: Sequence[str]  # one line each


@dataclass(frozen=True, slots=True)
class InspectionFiles:
    """Where an inspection lies."""

    html: Path
    json: Path
    pictures: Path  # folder


@dataclass(frozen=True, slots=True)
class _Shown:
    """One panel, once for each layer it differs in."""

    title: str
    layers: Sequence[tuple[int | None, str, str]]  # layer from 1 (None: all alike), data: address, words


@dataclass(frozen=True, slots=True)
class _SceneShown:
    name: str
    panels: Sequence[_Shown]
    objects: Sequence[tuple[str, str]]  # class, CSS colour
    counts: str  # objects by class, in words; empty where there are none


def write_inspection(folder: Path, subject: Subject, numbers: Numbers, scenes: Sequence[Scene]) -> InspectionFiles:
    """Write inspect.html, inspect.json and the pictures, replacing those of an earlier inspection.

    Args:
        folder: made if absent.
        subject: what was inspected, and how.
        numbers: over the data.
        scenes: the images to show, in order.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for old in pictures.glob("*.png"):
        old.unlink()
    files = InspectionFiles(folder / "inspect.html", folder / "inspect.json", pictures)
    shown = [_show(place, scene, pictures) for place, scene in enumerate(scenes, start=1)]
    save_png(numbers, subject.threshold, pictures / "statistics.png")
    count = len(numbers.layers)
    facts = {
        "title": "What a teacher's queries see",
        "subject": subject,
        "numbers": numbers,
        "scenes": shown,
        "sentences": list(sentences(numbers)),
        "capped": capped(numbers, subject.cap),
        "layers": range(1, count + 1),
        "figures": [layer_figures(numbers, layer, subject.threshold) for layer in range(count)],
        "depth": depth_figures(numbers),
        "roles": [(role, name, ROLE_COLOURS[role]) for role, name in ROLE_NAMES.items()],
        "marks": _MARKS,
        "version": version("qskd"),
        "has_pairs": subject.student is not None and any(scene.pairs for scene in scenes),
    }
    text = page_environment().get_template("inspect.html.jinja").render(facts)
    files.html.write_text(text, encoding="utf-8")
    content = as_dict(subject, numbers, scenes)
    files.json.write_text(json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    return files


def as_dict(subject: Subject, numbers: Numbers, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Every number of the page, and every query of its images, as plain JSON values."""
    return {
        "qskd": version("qskd"),
        "teacher": subject.teacher,
        "family": subject.family,
        "student": subject.student,
        "method": subject.method,
        "settings": dict(subject.settings),
        "notes": list(subject.notes),
        "statistics": numbers.as_dict(),
        "images": [scene.as_dict() for scene in scenes],
    }


def sentences(numbers: Numbers) -> Iterator[str]:
    """What the last layer's numbers say, in words."""
    last = numbers.layers[-1]
    hard, positive, easy = (last.roles[role] for role in (Role.HARD_NEGATIVE, Role.POSITIVE, Role.EASY_NEGATIVE))
    if hard.giou is None or hard.score is None:
        yield "The last decoder layer has no hard negatives here."
        return
    yield (
        f"In the last decoder layer an object has one positive and, on average, {number(last.mean_hard, 1)} hard "
        "negatives: queries that lie on it, but were not matched to it."
    )
    giou, score = (_medians(positive, easy, value) for value in ("giou", "score"))
    yield (
        f"They overlap it with a median GIoU of {hard.giou.median:.2f}{giou}, and their best score has a median of "
        f"{hard.score.median:.2f}{score}."
    )
    if hard.foreground is not None and numbers.object_area is not None:
        yield (
            f"{hard.foreground:.0%} of their attention lies within objects{_shares(positive, easy, 'foreground')}, "
            f"which cover {numbers.object_area:.0%} of an image."
        )
    if hard.agreement is not None:
        shares = _shares(positive, easy, "agreement")
        yield f"{hard.agreement:.0%} of them give their object's class the best score of all classes{shares}."


def capped(numbers: Numbers, cap: int | None) -> str | None:
    """A word of caution where the limit of hard negatives of an object cuts off many; None elsewhere."""
    found = numbers.layers[-1].hard_per_object
    if cap is None or len(found) <= cap or not sum(found):
        return None
    share = sum(found[cap:]) / sum(found)
    if share < _FEW:
        return None
    return (
        f"{share:.0%} of the objects have as many hard negatives as the method allows (selection.cap is {cap}): their "
        "other queries count as easy negatives, however much they overlap."
    )


def _medians(positive: RoleNumbers, easy: RoleNumbers, value: str) -> str:
    return _compared({name: getattr(one, value) for name, one in _named(positive, easy)}, lambda x: f"{x.median:.2f}")


def _shares(positive: RoleNumbers, easy: RoleNumbers, value: str) -> str:
    return _compared({name: getattr(one, value) for name, one in _named(positive, easy)}, lambda x: f"{x:.0%}")


def _compared(values: Mapping[str, Any], told: Callable[[Any], str]) -> str:
    words = [f"{name} {told(value)}" for name, value in values.items() if value is not None]
    return f" ({', '.join(words)})" if words else ""


def _named(positive: RoleNumbers, easy: RoleNumbers) -> list[tuple[str, RoleNumbers]]:
    return [("positives", positive), ("easy negatives", easy)]


def _show(place: int, scene: Scene, folder: Path) -> _SceneShown:
    """The panels of an image, each written as PNG, too."""

    def saved(kind: str, image: Image.Image) -> str:
        image.save(folder / f"image_{place}_{kind}.png")
        return data_uri(image)

    layers = range(scene.num_layers)
    panels = [
        _Shown(
            "Queries",
            [(n + 1, saved(f"layer_{n + 1}_queries", draw_queries(scene, n)), counted(scene, n)) for n in layers],
        )
    ]
    if (object_ := scene.most_sought) is not None:
        close = [
            (
                n + 1,
                saved(f"layer_{n + 1}_close_up", draw_close_up(scene, n, object_)),
                close_up_words(scene, n, object_),
            )
            for n in layers
        ]
        panels.append(_Shown("One object", close))
        heat = [
            (n + 1, saved(f"layer_{n + 1}_attention", draw_heat(scene, [level[n] for level in scene.attention])), "")
            for n in layers
        ]
        panels.append(_Shown("Attention of positives and hard negatives", heat))
        whole = draw_heat(scene, [level.sum(0) for level in scene.attention])
        panels.append(_Shown("The same, all layers added up", [(None, saved("attention", whole), "")]))
        if scene.mask:
            words = "How much each place counts in the feature loss (AGFD), all layers."
            panels.append(_Shown("AGFD mask", [(None, saved("agfd_mask", draw_heat(scene, scene.mask)), words)]))
    if scene.pairs:
        panels.append(_Shown("Pairs with the student (LAPD)", list(_pairs(scene, saved))))
    names = [scene.class_names[label] for label in scene.labels]
    counts = ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())
    listed = [(name, _css(n)) for n, name in enumerate(names)] if len(names) <= _LISTED else []
    return _SceneShown(scene.name, panels, listed, counts)


def _pairs(scene: Scene, saved: Any) -> Iterator[tuple[int, str, str]]:
    for layer in range(scene.num_layers):
        pairs = scene.pairs_of(layer)
        if pairs is None:
            yield layer + 1, "", "No student layer learns from this one."
            continue
        positives, hard = pairs.counts
        words = f"Pairs of student layer {pairs.student_layer + 1}: {positives} of positives, {hard} of hard negatives."
        yield layer + 1, saved(f"layer_{layer + 1}_pairs", draw_pairs(scene, pairs)), words


def counted(scene: Scene, layer: int) -> str:
    """The roles of a layer's queries in words: ``2 positives, 9 hard negatives, 39 easy negatives``."""
    counts = [(scene.count(layer, role), name) for role, name in ROLE_NAMES.items()]
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts)


def close_up_words(scene: Scene, layer: int, object_: int) -> str:
    """An object's queries in words: class, the positive's overlap and score, the hard negatives' by number."""
    positive, hard = scene.positive(layer, object_), scene.hard_negatives(layer, object_)
    rows = [("positive", positive)] if positive is not None else []
    rows += [(str(place), query) for place, query in enumerate(hard[:NUMBERED], start=1)]
    words = [
        f"{name}: GIoU {scene.giou[layer, query]:.2f}, {scene.class_names[scene.best[layer, query]]} "
        f"{scene.score[layer, query]:.2f}"
        for name, query in rows
    ]
    more = [f"and {len(hard) - NUMBERED} more hard negatives, thin"] if len(hard) > NUMBERED else []
    return "\n".join([f"{scene.class_names[scene.labels[object_]]}, with best class and score:", *words, *more])


def _css(position: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*class_colour(position))
