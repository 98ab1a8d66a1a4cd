"""Frames of video files, read and written by PyAV; needs the extra `cpsl[video]`."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")


def read_frames(path: Path) -> Iterator[Tensor]:
    """Yields the frames of a video, (3, H, W) uint8, rotated as its metadata require."""
    av = _pyav(path)
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                # Phones store upright frames sideways, with the counterclockwise rotation to apply.
                array = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                yield torch.from_numpy(array.copy()).permute(2, 0, 1)
    except (av.error.FFmpegError, IndexError) as error:  # IndexError: there is no video stream
        raise ValueError(f"{path} cannot be read as a video: {error}") from error


def frame_rate(path: Path) -> Fraction:
    """Returns the mean number of frames per second."""
    with _pyav(path).open(str(path)) as container:
        stream = container.streams.video[0]
        return Fraction(stream.average_rate or stream.guessed_rate or 25)


def write_video(path: Path, frames: Iterable[Tensor], rate: Fraction) -> None:
    """Writes frames (3, H, W) uint8 of one size as MP4 (H.264), whatever the suffix of the file.

    Odd sizes grow by a row or column: H.264 needs even ones.
    """
    av = _pyav(path)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.pix_fmt = "yuv420p"  # every player supports it
        for number, frame in enumerate(frames):
            height, width = frame.shape[1:]
            even = F.pad(frame[None].float(), (0, width % 2, 0, height % 2), mode="replicate")[0]
            if number == 0:
                stream.height, stream.width = even.shape[1:]
            array = even.byte().permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())


def _pyav(path: Path) -> ModuleType:
    try:
        return import_module("av")
    except ImportError:
        raise RuntimeError(
            f"{path} needs PyAV: pip install 'cpsl[video]', or give a folder of frames instead"
        ) from None
