"""What a trained model finds on images and videos, drawn and as COCO results; `qskd predict`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import yaml

from qskd import __version__
from qskd.data.videos import require_av
from qskd.errors import ConfigError, DataError
from qskd.evaluation.predictor import AdapterPredictor, Predictor
from qskd.files import make_folder, plain_yaml
from qskd.labels import LabelMap, match_names, normalise
from qskd.models.loading import BoxFrame
from qskd.runs import building, image_sizes
from qskd.runs.folder import RunFolder
from qskd.runs.inputs import INFO, PREDICTIONS, Inputs, find_inputs
from qskd.runs.options import SourceOptions
from qskd.runs.predictions import JsonRows, Tally, write_json
from qskd.runs.seeing import Seeing

_SHOWN = 20  # classes named in an error


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """How to look, and what to write."""

    output_dir: str = "predictions"
    threshold: float = 0.3  # score in [0, 1] that a box must have
    top: int = 100  # boxes of an image, at most
    classes: Sequence[str] | None = None  # only these; None for all
    batch_size: int = 8
    image_size: int | None = None
    max_image_size: int | None = None
    box_frame: BoxFrame | None = None  # None: what the run was trained with, else "content"
    device: str | None = None  # None: cuda where there is one
    pictures: bool = True
    trust_remote_code: bool = False

    def check(self) -> None:
        """Raises ConfigError for values that cannot be."""
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"--threshold is {self.threshold}; give a score from 0 to 1.")
        if self.top < 1:
            raise ConfigError(f"--top is {self.top}; give at least 1 box an image.")
        if self.batch_size < 1:
            raise ConfigError(f"--batch_size is {self.batch_size}; give at least 1.")
        if isinstance(self.classes, str):
            raise ConfigError(f"classes is the text '{self.classes}'; give a list of names.")
        if Path(self.output_dir).expanduser().is_file():
            raise ConfigError(f"--output_dir {self.output_dir} is a file; give a folder.")


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was found, and where it is written."""

    images: int  # that could be read, without frames of videos
    frames: int  # of all videos
    boxes: dict[str, int]  # by class, all classes that may be found
    holding: dict[str, int]  # images and frames with at least one, by class
    failures: dict[str, str]  # name of a file that could not be read: why
    seconds: float  # of everything but loading the model
    model_seconds: float  # of the model alone
    output_dir: Path
    predictions: Path
    info: Path


def predict(model: str, inputs: Sequence[Path], options: PredictOptions) -> Predicted:
    """Look at images and videos batch by batch; nothing accumulates but counts.

    Args:
        model: hub id, folder, or the folder of a run.
        inputs: images, videos, folders of them.
        options: see there.

    Raises:
        ConfigError: options that cannot be, or nothing to look at.
        CheckpointError: no usable model.
        DataError: the results cannot be written.
    """
    options.check()
    output_dir = Path(options.output_dir).expanduser()
    found = find_inputs(inputs, output_dir)
    if found.videos:
        require_av()
    predictor, facts = open_predictor(model, options)
    make_folder(output_dir, "--output_dir")
    tally = Tally(predictor.class_names)
    seeing = Seeing(predictor, output_dir, options.threshold, options.batch_size, options.pictures, tally)
    begin = perf_counter()
    with _writing(output_dir):
        with JsonRows(output_dir / PREDICTIONS) as rows:
            images = seeing.images(found.images, rows)
            videos = seeing.videos(found.videos)
        seconds = perf_counter() - begin
        info = facts | _info(predictor, options, found, tally) | {"images": images, "videos": videos}
        write_json(output_dir / INFO, info)
    return Predicted(
        images=len(images),
        frames=sum(video["frames"] for video in videos),
        boxes={name: tally.boxes[name] for name in predictor.class_names},
        holding={name: tally.holding[name] for name in predictor.class_names},
        failures=tally.failures,
        seconds=seconds,
        model_seconds=tally.model_seconds,
        output_dir=output_dir,
        predictions=output_dir / PREDICTIONS,
        info=output_dir / INFO,
    )


def open_predictor(model: str, options: PredictOptions) -> tuple[Predictor, dict[str, Any]]:
    """Whatever finds objects, behind one door, and the facts about it that are written down.

    Raises:
        CheckpointError: no usable model.
        ConfigError: a class, size or device that cannot be.
    """
    device = _device(options.device)
    source, frame = _model_of(model)
    frame = options.box_frame or frame
    adapter = building.open_model(source, None, box_frame=frame, trust_remote_code=options.trust_remote_code)
    sizes = SourceOptions(image_size=options.image_size, max_image_size=options.max_image_size)
    size = image_sizes.choose_size(sizes, [adapter], [source])
    names = LabelMap.of_model(adapter.id2label).student_names
    only = None if not options.classes else choose_classes(options.classes, names)
    adapter.model.to(device)
    facts = {
        "model": str(Path(source).resolve()) if Path(source).exists() else source,
        "family": adapter.family,
        "image_size": {name: value for name, value in asdict(size).items() if value is not None},
        "box_frame": frame,
        "device": str(device),
    }
    return AdapterPredictor(adapter, size, top=options.top, only=only), facts


def choose_classes(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Positions of the wanted classes among a model's.

    Raises:
        ConfigError: the model has no such class; the nearest is named.
        LabelMapError: a name could mean several classes.
    """
    wanted = list(dict.fromkeys(wanted))
    found = match_names(dict(enumerate(names)), wanted)
    for name, position in zip(wanted, found, strict=True):
        if position < 0:
            known = {normalise(one): one for one in names}
            near = get_close_matches(normalise(name), known, n=1)
            hint = f" Did you mean '{known[near[0]]}'?" if near else ""
            listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            raise ConfigError(f"--classes: the model has no class '{name}'.{hint} It has {listed}.")
    return list(found)


def _model_of(source: str) -> tuple[str, BoxFrame]:
    """The model of a run folder and what its boxes are fractions of; any other source as it is."""
    folder = RunFolder(Path(source).expanduser())
    if (folder.path / "config.json").is_file() or not folder.model().is_dir():
        return source, "content"
    try:
        options = plain_yaml(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        options = None
    is_canvas = isinstance(options, dict) and options.get("box_frame") == "canvas"
    return str(folder.model()), "canvas" if is_canvas else "content"


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # NotImplementedError is a RuntimeError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--device {name} cannot be used ({reason}). Give cpu, cuda, or cuda:0.") from error
    return device


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder}: the predictions cannot be written ({error}).") from error


def _info(predictor: Predictor, options: PredictOptions, found: Inputs, tally: Tally) -> dict[str, Any]:
    """What stands beside the boxes; with ``images`` it is a COCO file without annotations."""
    pairs = zip(predictor.category_ids, predictor.class_names, strict=True)
    return {
        "qskd": __version__,
        "threshold": options.threshold,
        "top": options.top,
        "only_classes": list(options.classes) if options.classes else None,
        "folder": str(found.folder),
        "unreadable": [{"file_name": name, "reason": reason} for name, reason in tally.failures.items()],
        "categories": [{"id": number, "name": name} for number, name in pairs],
        "annotations": [],
    }
