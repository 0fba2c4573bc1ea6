"""Small videos for tests; needs PyAV."""

from fractions import Fraction
from pathlib import Path

import numpy as np


def write_video(
    path: Path,
    frames: list[np.ndarray],
    *,
    codec: str = "mpeg4",
    rate: int = 10,
    turned: int = 0,
    index_first: bool = False,
) -> Path:
    """Frames [h, w, 3] uint8 at a steady rate.

    Args:
        path: its ending decides on the container.
        frames: of even sides.
        codec: of FFmpeg.
        rate: frames a second.
        turned: degrees counterclockwise that a player has to turn the frames by.
        index_first: of mp4 and mov: what tells of the frames stands before them, so that the start of a file opens.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        if turned:
            stream.set_display_rotation(turned)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path
