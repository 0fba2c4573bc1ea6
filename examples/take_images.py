"""Take a part of the images of a stream to the local disk, for ``--unlabeled``; docs/scaling.md says when.

    python examples/take_images.py --shards 'shards/*.tar' --begin 0 --end 100000 --output_dir part

The stream is a WebDataset: tar files, read one after the other by Hugging Face's ``datasets`` (``pip install
datasets``). Images are written as they are, not decoded.
"""

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from datasets import Image, load_dataset


def take(shards: str, begin: int, end: int, folder: Path) -> int:
    """Write the images with numbers from ``begin`` up to ``end`` into a folder; how many there were."""
    stream = load_dataset("webdataset", data_files=shards, split="train", streaming=True)
    name = next(column for column, kind in stream.features.items() if isinstance(kind, Image))
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for row in islice(stream.cast_column(name, Image(decode=False)), begin, end):
        (folder / f"{begin + count:09d}.{name}").write_bytes(row[name]["bytes"])
        count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the flags, take the images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True, help="pattern of tar files")
    parser.add_argument("--begin", type=int, default=0)
    parser.add_argument("--end", type=int, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    options = parser.parse_args(arguments)
    count = take(options.shards, options.begin, options.end, options.output_dir)
    print(f"{count} images in {options.output_dir}")
    if count == 0:
        raise SystemExit(f"The stream holds no image {options.begin}: it is over.")


if __name__ == "__main__":
    main()
