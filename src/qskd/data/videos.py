"""Frames of a video file, upright, and a video made of frames; through PyAV, which the extra ``video`` brings."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qskd.errors import ConfigError, DataError, QskdError

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
"""Endings, in small letters, of the names of files that are taken for videos."""

_TICKS = 60_000  # a second: whole numbers for a frame at 24, 25, 30, 50, 60 and 29.97 of them
_USUAL_RATE = Fraction(25)  # of files that do not tell
_CODECS = ("libx264", "mpeg4")  # the first that this build of FFmpeg can write


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a video."""

    index: int  # from 0
    seconds: float  # since the start of the video
    pixels: Tensor  # [3, h, w] uint8, upright


def require_av() -> Any:
    """The module ``av``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ConfigError("Videos are read with PyAV, which is not installed: `pip install av`.") from error
    return av


def frame_rate(path: Path) -> Fraction:
    """Frames a second, on average.

    Raises:
        DataError: the file is missing, damaged or holds no pictures.
        ConfigError: PyAV is not installed.
    """
    av = require_av()
    with _told(path, "read"), av.open(str(path)) as container:
        stream = _pictures(path, container)
        return Fraction(stream.average_rate or stream.guessed_rate or _USUAL_RATE)


def read_frames(path: Path) -> Iterator[Frame]:
    """The frames of a video, one after the other, turned as its display matrix says.

    Raises:
        DataError: the file is missing, damaged or cut off (after the frames that could be read) or holds no pictures.
        ConfigError: PyAV is not installed.
    """
    av = require_av()
    rate = frame_rate(path)
    count, said = 0, 0
    with _told(path, "read"), av.open(str(path)) as container:
        stream = _pictures(path, container)
        stream.thread_type = "AUTO"
        start: float | None = None
        said = int(stream.frames)  # 0 where the container does not say
        for index, picture in enumerate(container.decode(stream)):
            time = float(picture.time) if picture.time is not None else float(index / rate)
            start = time if start is None else start
            turned = np.rot90(picture.to_ndarray(format="rgb24"), round(picture.rotation / 90))
            yield Frame(index, time - start, torch.from_numpy(np.ascontiguousarray(turned)).permute(2, 0, 1))
            count = index + 1
    if count < said and _whole_packets(path) < said:
        raise DataError(
            f"{path}: the video cannot be read to its end: it says that it has {said} frames, and {count} could be "
            "read. It is cut off or damaged; copy it anew."
        )


def _whole_packets(path: Path) -> int:
    """How many encoded frames are in a file; those that its edit list hides, which are never shown, among them."""
    with _told(path, "read"), require_av().open(str(path), options={"ignore_editlist": "1"}) as container:
        packets = container.demux(_pictures(path, container))
        # One without size repeats the frame before, but for the last, which has no time and ends them.
        return sum((packet.size > 0 or packet.dts is not None) and not packet.is_corrupt for packet in packets)


class VideoWriter:
    """Writes frames to an mp4, each at its time; sound is not written.

    Args:
        path: made with its folders, replaced if it exists. Without a frame nothing is written.
        rate: frames a second, what the encoder reckons with.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path = path
        self.rate = rate
        self._container: Any = None
        self._stream: Any = None
        self._last = -1  # ticks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        with _told(self.path, "written"):
            try:
                self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()

    def add(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """One frame more.

        Args:
            pixels: [h, w, 3]; a side of an odd number of pixels gets one more, which H.264 needs.
            seconds: since the start; a frame that is not later than the one before is moved behind it.

        Raises:
            DataError: the file cannot be written.
        """
        height, width = pixels.shape[:2]
        even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        with _told(self.path, "written"):
            if self._container is None:
                self._open(even.shape[0], even.shape[1])
            picture = require_av().VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            self._last = max(self._last + 1, round(seconds * _TICKS))
            picture.pts, picture.time_base = self._last, Fraction(1, _TICKS)
            self._container.mux(self._stream.encode(picture))

    def _open(self, height: int, width: int) -> None:
        av = require_av()
        codec = next((name for name in _CODECS if name in av.codecs_available), _CODECS[-1])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self.path), "w")
        self._stream = self._container.add_stream(codec, rate=self.rate.limit_denominator(_TICKS))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        if codec == "libx264":
            self._stream.options = {"crf": "20", "preset": "veryfast"}
        else:
            self._stream.bit_rate = int(height * width * min(float(self.rate), 60.0) / 5)


def _pictures(path: Path, container: Any) -> Any:
    if not container.streams.video:
        raise DataError(f"{path}: holds no pictures, only sound or data.")
    return container.streams.video[0]


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong with a file, as a DataError that names it."""
    try:
        yield
    except QskdError:
        raise
    except (require_av().FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{path}: the video cannot be {what} ({error}).") from error
