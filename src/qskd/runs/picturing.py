"""What trained models find on a few images, drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from qskd.data.images import read_image
from qskd.data.index import DetectionIndex
from qskd.errors import QskdError
from qskd.evaluation.detections import Detections
from qskd.files import whole_file
from qskd.reporting.closeup import CloseUp, Extremes, ImageGain
from qskd.reporting.pictures import SCORE, Objects, class_colour, data_uri, detection_sheet, draw_objects, shown
from qskd.reporting.report import Panel, Pictures, PictureSet
from qskd.runs import building
from qskd.runs.sitting import Sitter


@dataclass(frozen=True, slots=True)
class Column:
    """What is drawn under one title: the data's labels, or what a model found."""

    title: str
    objects: tuple[Objects, ...]  # of each image


def evenly_chosen(index: DetectionIndex, count: int) -> list[int]:
    """Positions of at most ``count`` images, evenly spread over those that hold objects (or over all)."""
    filled = [position for position in range(len(index)) if len(index.labels(position))]
    return building.evenly(filled or range(len(index)), count)


def labelled(index: DetectionIndex, positions: Sequence[int]) -> Column:
    """The objects that the data says are there."""
    found = [
        Objects(tuple(index.labels(position).tolist()), tuple(tuple(box) for box in index.boxes(position).tolist()))
        for position in positions
    ]
    return Column("ground truth", tuple(found))


def detected(
    title: str,
    found: Mapping[int, Detections],
    index: DetectionIndex,
    positions: Sequence[int],
    score: float = SCORE,
) -> Column:
    """What a model found on some of the images.

    Args:
        title: of the column.
        found: its detections by image id, in the classes of the data.
        index: the data.
        positions: of the images.
        score: from which detections are drawn.
    """
    return Column(title, tuple(shown(found[index.images[position].id], score) for position in positions))


def drawn(index: DetectionIndex, positions: Sequence[int], columns: Sequence[Column]) -> list[list[Image.Image]]:
    """One row for each image, one panel in it for each column."""
    rows = []
    for row, position in enumerate(positions):
        record = index.images[position]
        pixels = read_image(record)
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        rows.append([draw_objects(image, column.objects[row], index.class_names) for column in columns])
    return rows


def draw_pictures(
    index: DetectionIndex,
    sitters: Sequence[Sitter],
    found: Mapping[str, Mapping[int, Detections]],
    closeup: CloseUp,
    images: int,
    sheet: Path,
) -> Pictures:
    """Ground truth, teachers, baselines and distilled models on the same validation images.

    Args:
        index: the images.
        sitters: the models.
        found: their detections by name.
        closeup: knows where methods gain and lose most; these images are drawn, too.
        images: how many to choose evenly, at most.
        sheet: image file to write the panels of these to.
    """
    positions = evenly_chosen(index, images)
    note = (
        f"{len(positions)} of {len(index)} validation images, evenly spread over those that hold objects. Drawn are "
        f"detections with a score of at least {SCORE}; thin boxes are the best of a model that is less sure."
    )
    chosen = [one for one in sitters if one.is_shown and one.shown.name in found]
    try:
        columns = _columns(index, chosen, found, positions)
        panels = drawn(index, positions, columns)
        with whole_file(sheet) as fresh:
            detection_sheet(panels, [column.title for column in columns]).save(fresh, "JPEG", quality=88)
        rows = _rows([index.images.file_names[at] for at in positions], panels, columns, index.class_names)
        sets, more = _sets(index, chosen, found, closeup)
    except QskdError as error:
        return Pictures(notes=[f"No pictures: {error}"])
    seen = {label for column in (*columns, *more) for objects in column.objects for label in objects.labels}
    legend = [(index.class_names[at], "#{:02x}{:02x}{:02x}".format(*class_colour(at))) for at in sorted(seen)]
    return Pictures(rows, sets, legend, [note], sheet.name)


def _columns(
    index: DetectionIndex,
    sitters: Sequence[Sitter],
    found: Mapping[str, Mapping[int, Detections]],
    positions: Sequence[int],
    thresholds: Mapping[str, float] | None = None,
) -> list[Column]:
    """Ground truth and models; ``thresholds`` by title, else the same for all."""
    models = [
        detected(one.title, found[one.name], index, positions, (thresholds or {}).get(one.title, SCORE))
        for one in (sitter.shown for sitter in sitters)
    ]
    return [labelled(index, positions), *models]


def _sets(
    index: DetectionIndex,
    sitters: Sequence[Sitter],
    found: Mapping[str, Mapping[int, Detections]],
    closeup: CloseUp,
) -> tuple[list[PictureSet], list[Column]]:
    """The images on which methods gain most, and those on which they lose most; and what is drawn on them."""
    place = {id_: at for at, id_ in enumerate(index.images.ids.tolist())}
    thresholds = {one.title: one.errors.threshold for one in closeup.models}
    sets: list[PictureSet] = []
    all_columns: list[Column] = []
    for extreme in closeup.extremes:
        pair = [one for one in sitters if one.shown.role == "teacher" or one.shown.title in extreme.titles]
        reason = _reason(extreme)
        for what, gains in (("gains", extreme.best), ("loses", extreme.worst)):
            positions = [place[gain.image_id] for gain in gains]
            columns = _columns(index, pair, found, positions, thresholds)
            all_columns += columns
            rows = _rows([_told(gain) for gain in gains], drawn(index, positions, columns), columns, index.class_names)
            if rows:
                sets.append(PictureSet(f"Where {extreme.label} {what} most", reason, rows))
                reason = ""
    return sets, all_columns


def _told(gain: ImageGain) -> str:
    return f"{gain.file_name}: from {gain.before:.2f} to {gain.after:.2f}"


def _reason(extreme: Extremes) -> str:
    before, after = extreme.titles
    return (
        f"{after} against {before}: better on {extreme.better} images, worse on {extreme.worse}. An image counts 1 "
        "where a model finds every object and nothing else, 0 where it finds none: F1 at the score threshold that is "
        "best for that model over all images, averaged over the IoU thresholds 0.5 to 0.95. Drawn is what counts: "
        "detections from that threshold on; thin boxes, where none reaches it, do not count."
    )


def _rows(
    names: Sequence[str],
    panels: Sequence[Sequence[Image.Image]],
    columns: Sequence[Column],
    class_names: Sequence[str],
) -> list[tuple[str, list[Panel]]]:
    """Named rows of panels with captions."""
    rows = []
    for row, (name, images) in enumerate(zip(names, panels, strict=True)):
        captions = [column.objects[row].counted(class_names) for column in columns]
        rows.append(
            (
                name,
                [
                    Panel(column.title, caption, data_uri(image))
                    for column, caption, image in zip(columns, captions, images, strict=True)
                ],
            )
        )
    return rows
