from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from cpsl.app.video import read_frames, write_video

av = pytest.importorskip("av", reason="videos need cpsl[video]")
FORMATS = {
    ".mkv": ("matroska", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
    ".avi": ("avi", "mpeg4"),
    ".mp4": ("mp4", "libx264"),
    ".mov": ("mov", "mpeg4"),
}


def write(path: Path, times: list[int], options: dict[str, str] | None = None) -> None:
    """Writes noise, at times in tenths of a second."""
    container_format, codec = FORMATS[path.suffix]
    generator = torch.Generator().manual_seed(0)
    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for time in times:
            noise = torch.randint(0, 256, (64, 96, 3), generator=generator, dtype=torch.uint8)
            frame = av.VideoFrame.from_ndarray(noise.numpy(), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_complete_video_raises_no_doubt(tmp_path: Path, suffix: str) -> None:
    doubts, path = list[str](), tmp_path / f"a{suffix}"
    write(path, list(range(40)))
    assert len(list(read_frames(path, doubts))) == 40
    assert not doubts


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_a_video_of_changing_rate_raises_no_doubt(tmp_path: Path, suffix: str) -> None:
    doubts, path = list[str](), tmp_path / f"a{suffix}"
    write(path, [0, 1, 2, 30, 33, 60, 90, 91])
    assert len(list(read_frames(path, doubts))) == 8
    assert not doubts


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_video_that_is_cut_off_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    doubts, path = list[str](), tmp_path / f"a{suffix}"
    of_format = {"movflags": "faststart"} if suffix in (".mp4", ".mov") else {}  # else its index is missing
    write(path, list(range(80)), of_format)
    cut(path, share)
    try:
        frames = len(list(read_frames(path, doubts)))
    except ValueError as error:
        doubts.append(str(error))
    else:
        assert 0 < frames < 80
        assert f" {frames} frames" in doubts[0]
    assert len(doubts) == 1
    assert str(path) in doubts[0]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_video_without_frames_is_damaged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, list(range(80)))
    cut(path, 0.006)
    with pytest.raises(ValueError, match="video") as refused:
        list(read_frames(path))
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"<html>", "HTML"),
        (bytes(range(256)) * 9, "damaged, or no video"),
        (None, "is a folder"),
    ],
)
def test_what_is_no_video_is_named_without_numbers_of_the_system(
    tmp_path: Path, suffix: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / f"a{suffix}"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as refused:
        list(read_frames(path))
    assert str(path) in str(refused.value)
    assert "Errno" not in str(refused.value)


def test_a_sound_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        silence.rate = 8000
        container.mux([*stream.encode(silence), *stream.encode()])
    with pytest.raises(ValueError, match=r"a\.mp4.*no pictures"):
        list(read_frames(path))


def test_frames_of_odd_size_are_padded(tmp_path: Path) -> None:
    frames = [torch.zeros(3, 41, 73, dtype=torch.uint8)] * 2
    write_video(tmp_path / "odd", frames, Fraction(10))
    assert [frame.shape for frame in read_frames(tmp_path / "odd")] == [(3, 42, 74)] * 2
