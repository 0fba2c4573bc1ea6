import struct
import sys
from fractions import Fraction

import numpy as np
import pytest

from builders_videos import write_video
from qskd.data.videos import VideoWriter, frame_rate, read_frames
from qskd.errors import ConfigError, DataError


def ramp(shade: int = 255, height: int = 32, width: int = 48) -> np.ndarray:
    """[h, w, 3], growing from left (black) to right; and red only in the upper half."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:] = np.linspace(0, shade, width).round().astype(np.uint8)[None, :, None]
    frame[height // 2 :, :, 0] = 0
    return frame


def difference(pixels, wanted):
    return np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - wanted.astype(int)).mean()


def test_without_pyav_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match="pip install av"):
        next(read_frames(tmp_path / "a.mp4"))


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "mpeg4"), ("mov", "mpeg4"), ("avi", "mpeg4"), ("mkv", "mpeg4"), ("webm", "libvpx")]
)
def test_frames_come_with_their_times(tmp_path, suffix, codec):
    pytest.importorskip("av")
    shades = [255, 200, 150, 100, 50]
    path = write_video(tmp_path / f"a.{suffix}", [ramp(shade) for shade in shades], codec=codec)
    frames = list(read_frames(path))
    assert [frame.index for frame in frames] == list(range(5))
    np.testing.assert_allclose([frame.seconds for frame in frames], [0, 0.1, 0.2, 0.3, 0.4], atol=2e-3)
    for frame, shade in zip(frames, shades, strict=True):
        assert frame.pixels.shape == (3, 32, 48)
        assert difference(frame.pixels, ramp(shade)) < 12
    assert float(frame_rate(path)) == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("turned", [90, 180, -90])
def test_frames_stand_upright(tmp_path, turned):
    pytest.importorskip("av")
    path = write_video(tmp_path / "a.mp4", [ramp()] * 2, turned=turned)
    wanted = {90: np.rot90(ramp()), 180: ramp()[::-1, ::-1], -90: np.rot90(ramp(), -1)}[turned]
    for frame in read_frames(path):
        assert frame.pixels.shape[1:] == wanted.shape[:2]
        assert difference(frame.pixels, wanted) < 12


@pytest.mark.parametrize("content", [b"", b"no video", b"\x00\x00\x00\x18ftypmp42" + bytes(500)])
def test_what_is_no_video_is_named(tmp_path, content):
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.mp4: the video cannot be read"):
        list(read_frames(tmp_path / "a.mp4"))


def noise(count: int) -> list[np.ndarray]:
    """Frames of about equal size in bytes."""
    return list(np.random.default_rng(0).integers(0, 255, (count, 32, 48, 3), dtype=np.uint8))


@pytest.mark.parametrize("suffix", ["mp4", "mov", "avi"])
def test_a_video_that_is_cut_off_gives_its_frames_and_is_named(tmp_path, suffix):
    pytest.importorskip("av")
    path = write_video(tmp_path / f"a.{suffix}", noise(20), index_first=suffix != "avi")
    assert len(list(read_frames(path))) == 20
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    got: list[int] = []
    with pytest.raises(DataError, match=r"cannot be read to its end: .* 20 frames, and \d+ could"):
        got.extend(frame.index for frame in read_frames(path))
    assert got == list(range(len(got)))
    assert 3 <= len(got) < 20


def test_frames_that_an_edit_list_hides_are_not_missed(tmp_path):
    """As of a telephone's trimmed video: all frames are in the file, fewer are shown."""
    pytest.importorskip("av")
    path = write_video(tmp_path / "a.mp4", noise(20), index_first=True)
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12  # behind kind, version and count: duration (ms), first time (10240 a second)
    content[entry : entry + 8] = struct.pack(">II", 1000, 5120)
    path.write_bytes(content)
    assert 0 < len(list(read_frames(path))) < 20


def test_sound_alone_is_no_video(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="holds no pictures"):
        list(read_frames(tmp_path / "a.mkv"))


def test_a_written_video_has_its_frames_at_their_times(tmp_path):
    pytest.importorskip("av")
    times = [0, 0.04, 0.2, 0.2, 1.5]  # uneven; the fourth is not later than the third
    with VideoWriter(tmp_path / "deep" / "a.mp4", Fraction(25)) as video:
        for time, shade in zip(times, [255, 200, 150, 100, 50], strict=True):
            video.add(ramp(shade, 33, 47), time)  # odd sides
    frames = list(read_frames(tmp_path / "deep" / "a.mp4"))
    np.testing.assert_allclose([frame.seconds for frame in frames], times, atol=1e-3)
    for frame, shade in zip(frames, [255, 200, 150, 100, 50], strict=True):
        assert frame.pixels.shape == (3, 34, 48)
        assert difference(frame.pixels[:, :33, :47], ramp(shade, 33, 47)) < 12


def test_without_frames_no_file_is_made(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", Fraction(25)):
        pass
    assert not any(tmp_path.iterdir())


def test_a_video_that_cannot_be_written_is_named(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "a.mp4").mkdir()
    with (
        pytest.raises(DataError, match=r"a\.mp4: the video cannot be written"),
        VideoWriter(tmp_path / "a.mp4", Fraction(25)) as video,
    ):
        video.add(ramp(), 0)
