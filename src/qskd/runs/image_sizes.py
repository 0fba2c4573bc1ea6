"""The size that images have in a run: as asked, else as the models were trained, in steps that they can take."""

import math
from collections.abc import Sequence

from qskd.data.transforms import ImageSize
from qskd.errors import ConfigError
from qskd.models.adapter import DetrAdapter
from qskd.models.processors import image_size_of
from qskd.runs.options import PairOptions, SourceOptions


def choose_size(options: SourceOptions, adapters: Sequence[DetrAdapter], sources: Sequence[str | None]) -> ImageSize:
    """The size images are resized to: what the options say, else what the first model's processor says.

    Raises:
        ConfigError: a size that one of the models cannot take.
    """
    size = asked_size(options.image_size, options.max_image_size, adapters, "--")
    if size is None:
        usual = ImageSize(square=_nearest(640, _step(adapters)))
        known = [image_size_of(source) for source in sources if source and not source.endswith(".json")]
        size = next((found for found in known if found is not None), None) or usual
        if size.square is None and _squares_only(adapters):
            size = usual
    _check_size(size, adapters, "--")
    return size


def choose_sizes(
    data: SourceOptions, pair: PairOptions, student: DetrAdapter, teacher: DetrAdapter
) -> tuple[ImageSize, ImageSize]:
    """The sizes that student and teacher see images in: the same, unless the teacher was given its own.

    Raises:
        ConfigError: a size that one of the models cannot take.
    """
    prefix = "--teacher_"
    sources = [pair.student, pair.teacher]
    own = asked_size(pair.teacher_image_size, pair.teacher_max_image_size, [teacher], prefix)
    if own is None:
        size = choose_size(data, [student, teacher], sources)
        return size, size
    _check_size(own, [teacher], prefix)
    return choose_size(data, [student], sources), own


def asked_size(edge: int | None, longest: int | None, adapters: Sequence[DetrAdapter], prefix: str) -> ImageSize | None:
    """The size that was asked for, if any; ``prefix`` begins the names of its options.

    Raises:
        ConfigError: the longest edge alone, or one for a model that takes squares only.
    """
    if longest is None:
        return None if edge is None else ImageSize(square=edge)
    if edge is None:
        raise ConfigError(f"{prefix}max_image_size is the longest edge; give the shortest with {prefix}image_size.")
    if fixed := _squares_only(adapters):
        way = ", or the teacher its own size with --teacher_image_size" if len(adapters) > 1 else ""
        raise ConfigError(
            f"{prefix}max_image_size keeps the aspect ratio and pads, but {', '.join(fixed)} reads no padding mask. "
            f"Give {prefix}image_size alone for a square{way}."
        )
    return ImageSize(shortest_edge=edge, longest_edge=longest)


def _squares_only(adapters: Sequence[DetrAdapter]) -> list[str]:
    return [adapter.family for adapter in adapters if not adapter.reads_padding]


def _step(adapters: Sequence[DetrAdapter]) -> int:
    return math.lcm(*(adapter.size_multiple for adapter in adapters))


def _check_size(size: ImageSize, adapters: Sequence[DetrAdapter], prefix: str) -> None:
    step = _step(adapters)
    if size.square is not None and size.square % step:
        way = " Or give the teacher its own size with --teacher_image_size." if len(adapters) > 1 else ""
        raise ConfigError(
            f"{prefix}image_size {size.square} is not a multiple of {step}, which "
            f"{', '.join(_squares_only(adapters))} needs. Try {_nearest(size.square, step)}.{way}"
        )
    for adapter in adapters:
        only = adapter.only_size
        if only is not None and only != (size.square, size.square):
            raise ConfigError(
                f"This {adapter.family} has anchor_image_size {list(only)} in its config.json, so it can be "
                f"evaluated at no other size. Give that as {prefix}image_size, or set it to null there."
            )
        _check_queries(adapter, size)


def _check_queries(adapter: DetrAdapter, size: ImageSize) -> None:
    """Refuse sizes whose memory has fewer cells than a model picks queries among them."""
    if not adapter.picks_queries:
        return
    edge = size.square or size.shortest_edge or 0
    cells = sum(math.ceil(edge / stride) ** 2 for stride in adapter.strides)
    if adapter.num_queries > cells:
        raise ConfigError(
            f"{adapter.family} picks {adapter.num_queries} queries among the cells of its memory, but images of {edge} "
            f"pixels have {cells} of them. Give a larger --image_size, or a model with fewer queries."
        )


def _nearest(size: int, step: int) -> int:
    return round(size / step) * step or step
