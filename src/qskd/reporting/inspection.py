"""The pages of an inspection: inspect.html, which needs nothing else, pictures, inspect.json."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from qskd.files import whole_file, write_whole
from qskd.reporting.pictures import class_colour, data_uri
from qskd.reporting.query_figures import ROLE_COLOURS, depth_figures, layer_figures, save_png
from qskd.reporting.query_pictures import draw_close_up, draw_heat, draw_pairs, draw_queries
from qskd.reporting.query_scene import ROLE_NAMES, Scene
from qskd.reporting.query_words import capped, close_up_words, counted, sentences
from qskd.reporting.report import page_environment
from qskd.selection.statistics import Numbers

_Saver = Callable[[str, Image.Image], str]  # writes a picture under its kind, returns a data: address

_MARKS = {
    "positive": "M7 1A6 6 0 1 1 7 13A6 6 0 1 1 7 1Z",
    "hard negative": "M2 2H12V12H2Z",
    "easy negative": "M7 2L13 12H1Z",
}  # as in the charts: circle, square, triangle

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
    with whole_file(pictures / "statistics.png") as fresh:
        save_png(numbers, subject.threshold, fresh)
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
    write_whole(files.html, text)
    content = as_dict(subject, numbers, scenes)
    write_whole(files.json, json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n")
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


def _show(place: int, scene: Scene, folder: Path) -> _SceneShown:
    """The panels of an image, each written as PNG, too."""

    def saved(kind: str, image: Image.Image) -> str:
        with whole_file(folder / f"image_{place}_{kind}.png") as fresh:
            image.save(fresh, "PNG")
        return data_uri(image)

    names = [scene.class_names[label] for label in scene.labels]
    counts = ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())
    listed = [(name, _css(n)) for n, name in enumerate(names)] if len(names) <= _LISTED else []
    return _SceneShown(scene.name, list(_panels(scene, saved)), listed, counts)


def _panels(scene: Scene, saved: _Saver) -> Iterator[_Shown]:
    """Every panel in the order of the page; only those that there is something to show on."""

    def by_layer(title: str, kind: str, draw: Callable[[int], Image.Image], words: Callable[[int], str]) -> _Shown:
        layers = range(scene.num_layers)
        return _Shown(title, [(n + 1, saved(f"layer_{n + 1}_{kind}", draw(n)), words(n)) for n in layers])

    yield by_layer("Queries", "queries", lambda n: draw_queries(scene, n), lambda n: counted(scene, n))
    object_ = scene.most_sought
    if object_ is not None:
        yield by_layer(
            "One object",
            "close_up",
            lambda n: draw_close_up(scene, n, object_),
            lambda n: close_up_words(scene, n, object_),
        )
        yield by_layer(
            "Attention of positives and hard negatives",
            "attention",
            lambda n: draw_heat(scene, [level[n] for level in scene.attention]),
            lambda n: "",
        )
        whole = draw_heat(scene, [level.sum(0) for level in scene.attention])
        yield _Shown("The same, all layers added up", [(None, saved("attention", whole), "")])
        if scene.mask:
            words = "How much each place counts in the feature loss (AGFD), all layers."
            yield _Shown("AGFD mask", [(None, saved("agfd_mask", draw_heat(scene, scene.mask)), words)])
    if scene.pairs:
        yield _Shown("Pairs with the student (LAPD)", list(_pairs(scene, saved)))


def _pairs(scene: Scene, saved: _Saver) -> Iterator[tuple[int, str, str]]:
    for layer in range(scene.num_layers):
        pairs = scene.pairs_of(layer)
        if pairs is None:
            yield layer + 1, "", "No student layer learns from this one."
            continue
        positives, hard = pairs.counts
        words = f"Pairs of student layer {pairs.student_layer + 1}: {positives} of positives, {hard} of hard negatives."
        yield layer + 1, saved(f"layer_{layer + 1}_pairs", draw_pairs(scene, pairs)), words


def _css(position: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*class_colour(position))
