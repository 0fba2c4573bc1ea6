"""Which files a prediction is about: images and videos, named one by one or by their folders."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qskd.data.images import IMAGE_SUFFIXES
from qskd.data.videos import VIDEO_SUFFIXES
from qskd.errors import ConfigError

DRAWN_IMAGES = "images"
DRAWN_VIDEOS = "videos"
PREDICTIONS = "predictions.json"
INFO = "predictions_info.json"
_KEPT_AS = (".jpg", ".jpeg", ".png")  # endings that drawn images may have
_OURS = (PREDICTIONS, f"{PREDICTIONS}.part", INFO)  # what tells a folder of predictions from others


@dataclass(frozen=True, slots=True)
class Source:
    """An image or a video to look at."""

    path: Path
    name: str  # relative to the folder that holds all inputs, with /
    drawn: str  # likewise, what is drawn of it; no two sources have the same


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything to look at, in the order given; inside a folder by name."""

    folder: Path  # that all names are relative to
    images: tuple[Source, ...]
    videos: tuple[Source, ...]


def find_inputs(given: Sequence[Path], output_dir: Path) -> Inputs:
    """Files as they are, and the images and videos in folders, however deep; each once.

    Names in folders that begin with a dot are left out, and so is ``output_dir``. Nothing in a name is a wildcard.

    Args:
        given: files or folders.
        output_dir: where the predictions go.

    Raises:
        ConfigError: nothing was given or found, something does not exist, or would be overwritten.
    """
    output_dir = _absolute(output_dir)
    folders: list[Path] = []
    files: dict[Path, None] = {}  # a set that keeps its order
    for path in map(_absolute, given):
        if path.is_dir():
            folders.append(path)
            files |= dict.fromkeys(_inside(path, output_dir))
        elif path.exists():
            folders.append(path.parent)
            files[path] = None
        else:
            raise ConfigError(f"There is no file or folder {path}. Give images, videos, or folders of them.")
    if not files:
        what = f"in {', '.join(map(str, folders))}" if folders else "given"
        raise ConfigError(f"No image or video {what}. Endings looked for: {_endings()}.")
    _check_not_overwritten(files, output_dir)
    common = Path(os.path.commonpath(folders))
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    images = [path for path in files if path.suffix.lower() not in VIDEO_SUFFIXES]
    stay = [path.suffix.lower() in _KEPT_AS for path in images]
    # Not a.MP4 as it is: the boxes of a.mp4 beside it would go to a.json, too.
    are_mp4 = [path.suffix == ".mp4" for path in videos]
    return Inputs(common, _sources(images, common, stay, ".png"), _sources(videos, common, are_mp4, ".mp4"))


def _absolute(path: Path) -> Path:
    """Without . and .., but with links as they are."""
    return Path(os.path.abspath(Path(path).expanduser()))


def _inside(folder: Path, output_dir: Path) -> Iterator[Path]:
    """Images and videos below a folder, sorted by their paths; links are followed, but not in circles."""
    found: list[Path] = []
    seen: set[str] = set()
    output = os.path.realpath(output_dir)
    if os.path.realpath(folder) == output:
        raise ConfigError(f"--output_dir {output_dir} is itself an input. Give another folder, or one inside of it.")
    for place, below, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        below[:] = [
            name
            for name in below
            if not name.startswith(".")
            and (real := os.path.realpath(os.path.join(place, name))) not in seen
            and not (real == output and _is_for_predictions(output_dir))
        ]
        found += [Path(place, name) for name in names if not name.startswith(".") and _is_taken(name)]
    return iter(sorted(found, key=lambda path: path.relative_to(folder).parts))


def _is_taken(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES


def _is_for_predictions(output_dir: Path) -> bool:
    """True for a folder inside the inputs that holds predictions or nothing; one of anything else is refused."""
    if any((output_dir / name).exists() for name in _OURS) or not any(output_dir.iterdir()):
        return True
    raise ConfigError(
        f"--output_dir {output_dir} lies among the inputs and holds other files than predictions. Give a new folder."
    )


def _check_not_overwritten(files: Iterable[Path], output_dir: Path) -> None:
    drawn = [os.path.realpath(output_dir / name) for name in (DRAWN_IMAGES, DRAWN_VIDEOS)]
    for folder in {path.parent for path in files}:
        real = os.path.realpath(folder)
        if any(os.path.commonpath([real, other]) == other for other in drawn):
            raise ConfigError(
                f"The inputs in {folder} lie where drawn images go ({output_dir}) and could be overwritten. "
                "Give another --output_dir."
            )


def _sources(paths: Sequence[Path], common: Path, keep: Sequence[bool], suffix: str) -> tuple[Source, ...]:
    """Files with the names of what is drawn of them: their own where it is to be kept, else with ``suffix``."""
    names = [path.relative_to(common).as_posix() for path in paths]
    taken = {name for name, stays in zip(names, keep, strict=True) if stays}
    sources = []
    for path, name, stays in zip(paths, names, keep, strict=True):
        drawn = name if stays else _free_name(name, suffix, taken)
        taken.add(drawn)
        sources.append(Source(path, name, drawn))
    return tuple(sources)


def _free_name(name: str, suffix: str, taken: set[str]) -> str:
    """``a.png`` for ``a.bmp``; ``a.bmp.png`` where there is an ``a.png`` already."""
    drawn = str(PurePosixPath(name).with_suffix(suffix))
    extended = name
    while drawn in taken:
        extended = drawn = f"{extended}{suffix}"
    return drawn


def _endings() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
