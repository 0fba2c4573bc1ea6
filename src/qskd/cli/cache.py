"""`qskd cache`."""

from collections.abc import Sequence

from qskd.cli.parsing import parse, show
from qskd.runs.caching_progress import in_bytes
from qskd.runs.caching_teacher import cache_teacher
from qskd.runs.options import CacheOptions, DataOptions, MethodOptions


def run(arguments: Sequence[str]) -> int:
    """Run the teacher once and keep its answers."""
    options, data, method = parse(
        "cache",
        "Run the teacher once over the augmented training data and keep its answers. `qskd distill --teacher_cache` "
        "then needs no teacher. (--cache_images is something else: it keeps decoded images.)",
        (CacheOptions, DataOptions, MethodOptions),
        arguments,
    )
    kept = cache_teacher(options, data, method)
    show(f"{kept.images} images x {kept.epochs} epochs, {in_bytes(kept.bytes)}")
    show(f"give it to `qskd distill` as --teacher_cache {kept.folder}")
    return 0
