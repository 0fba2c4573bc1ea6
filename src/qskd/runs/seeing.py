"""Images and videos through a predictor, batch by batch: read, seen, written, drawn, forgotten."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from qskd.data.images import read_whatever_size
from qskd.data.videos import Frame, VideoWriter, frame_rate, read_frames
from qskd.errors import ConfigError, DataError
from qskd.evaluation.detections import Detections
from qskd.evaluation.predictor import Predictor
from qskd.reporting.annotated import annotate
from qskd.reporting.pictures import Objects
from qskd.runs.inputs import DRAWN_IMAGES, DRAWN_VIDEOS, Source
from qskd.runs.predictions import JsonRows, Tally, as_rows

_THREADS = 4  # that read and draw
_JPEG: dict[str, Any] = {"quality": 92}
_PNG: dict[str, Any] = {"compress_level": 3}  # a third of the default's time

T = TypeVar("T")


@dataclass(frozen=True)
class Seeing:
    """One prediction at work.

    Args:
        predictor: what finds objects.
        output_dir: is there; drawn images and videos go below it.
        threshold: the least score of a box that is kept.
        batch_size: images at a time.
        pictures: whether to draw.
        tally: where everything is counted.
    """

    predictor: Predictor
    output_dir: Path
    threshold: float
    batch_size: int
    pictures: bool
    tally: Tally

    def images(self, sources: Sequence[Source], rows: JsonRows) -> list[dict[str, Any]]:
        """Look at image files; those that cannot be read are counted and left out.

        Args:
            sources: an image's id is its place among them, from 1.
            rows: where its boxes go.

        Returns:
            What COCO files say of an image, of each one that was read.
        """
        entries = []
        with ThreadPoolExecutor(_THREADS) as pool, _bar(len(sources), "image") as bar:
            for batch in _read_ahead(pool, list(enumerate(sources, start=1)), self.batch_size):
                read = [(number, source, pixels) for number, source, pixels in batch if isinstance(pixels, Tensor)]
                bad = {source.name: str(pixels) for _, source, pixels in batch if not isinstance(pixels, Tensor)}
                self.tally.failures.update(bad)
                found = self._find([pixels for _, _, pixels in read])
                for (number, source, pixels), one in zip(read, found, strict=True):
                    entries.append(_entry(number, source, pixels))
                    for row in as_rows(one, self.predictor.category_ids):
                        rows.add({"image_id": number, **row, "file_name": source.name})
                if self.pictures:
                    list(pool.map(self._draw_file, read, found))
                bar.update(len(batch))
        return entries

    def videos(self, sources: Sequence[Source]) -> list[dict[str, Any]]:
        """Look at all frames of videos; one that cannot be read, or not to its end, is counted.

        Returns:
            What is known of each video with at least one frame, and where its boxes are.
        """
        return [entry for source in sources if (entry := self._video(source)) is not None]

    def _video(self, source: Source) -> dict[str, Any] | None:
        drawn = self.output_dir / DRAWN_VIDEOS / source.drawn
        count, seconds, height, width = 0, 0.0, 0, 0
        try:
            rate = frame_rate(source.path)
        except DataError as error:
            self.tally.failures[source.name] = str(error)
            return None
        writer = VideoWriter(drawn, rate) if self.pictures else nullcontext()
        with JsonRows(drawn.with_suffix(".json")) as rows, writer as video, _bar(None, "frame") as bar:
            try:
                for frames in _in_batches(read_frames(source.path), self.batch_size):
                    self._see_frames(frames, rows, video)
                    count, seconds = frames[-1].index + 1, frames[-1].seconds
                    height, width = frames[-1].pixels.shape[-2:]
                    bar.update(len(frames))
            except DataError as error:
                self.tally.failures[source.name] = str(error)
        return {
            "file_name": source.name,
            "width": width,
            "height": height,
            "frames": count,
            "frame_rate": float(rate),
            "last_frame_seconds": seconds,
            "predictions": drawn.with_suffix(".json").relative_to(self.output_dir).as_posix(),
        }

    def _see_frames(self, frames: Sequence[Frame], rows: JsonRows, video: VideoWriter | None) -> None:
        found = self._find([frame.pixels for frame in frames])
        for frame, one in zip(frames, found, strict=True):
            for row in as_rows(one, self.predictor.category_ids):
                rows.add({"frame": frame.index, "seconds": frame.seconds, **row})
            if video is not None:
                video.add(np.asarray(self._drawn(frame.pixels, one)), frame.seconds)

    def _find(self, images: Sequence[Tensor]) -> list[Detections]:
        """What is kept of each image; counted."""
        if not images:
            return []
        begin = perf_counter()
        try:
            found = self.predictor.predict(images)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"The device's memory does not hold {len(images)} images at a time. Give a smaller --batch_size."
            ) from error
        self.tally.model_seconds += perf_counter() - begin
        kept = [Detections(*(part[one.scores >= self.threshold] for part in one)) for one in found]
        for one in kept:
            self.tally.add(one)
        return kept

    def _drawn(self, pixels: Tensor, found: Detections) -> Image.Image:
        boxes = tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in found.boxes.tolist())
        objects = Objects(tuple(found.labels.tolist()), boxes, tuple(found.scores.tolist()))
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        return annotate(image, objects, self.predictor.class_names)

    def _draw_file(self, read: tuple[int, Source, Tensor], found: Detections) -> None:
        _, source, pixels = read
        path = self.output_dir / DRAWN_IMAGES / source.drawn
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._drawn(pixels, found).save(path, **(_PNG if path.suffix.lower() == ".png" else _JPEG))
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error}). --no-pictures writes only JSON.") from error


def _entry(number: int, source: Source, pixels: Tensor) -> dict[str, Any]:
    height, width = pixels.shape[-2:]
    return {"id": number, "file_name": source.name, "width": width, "height": height}


Numbered = tuple[int, Source]


def _read_ahead(
    pool: ThreadPoolExecutor, sources: Sequence[Numbered], size: int
) -> Iterator[list[tuple[int, Source, Tensor | DataError]]]:
    """Batches of images, the next one being read while the last one is looked at."""
    waiting: list[tuple[int, Source, Future[Tensor | DataError]]] = []
    for batch in [*_in_batches(sources, size), []]:
        coming = [(number, source, pool.submit(_read, source.path)) for number, source in batch]
        if waiting:
            yield [(number, source, future.result()) for number, source, future in waiting]
        waiting = coming


def _read(path: Path) -> Tensor | DataError:
    try:
        return read_whatever_size(path)
    except DataError as error:
        return error


def _in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many; what came before a DataError is given before that is raised."""
    batch: list[T] = []
    failure: DataError | None = None
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except DataError as error:
        failure = error
    if batch:
        yield batch
    if failure is not None:
        raise failure


def _bar(total: int | None, unit: str) -> Any:
    return tqdm(total=total, desc="predict", unit=unit, leave=False, disable=None)
