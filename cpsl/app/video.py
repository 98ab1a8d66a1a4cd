"""Frames of video files, read and written by PyAV; needs the extra `cpsl[video]`."""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cpsl._internal.file_kinds import describe_text
from cpsl._internal.files import is_passing
from cpsl.data.formats import naming

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")


def read_frames(path: Path, doubts: list[str] | None = None) -> Iterator[Tensor]:
    """Yields the frames of a video, (3, H, W) uint8, rotated as its metadata require.

    Args:
        path: The video.
        doubts: Takes a message if the frames end long before the length that the file states.

    Raises:
        ValueError: The file is damaged, or no video, or has no frame.
        RuntimeError: PyAV is not installed.
    """
    av = _pyav(path)
    count, end = 0, 0.0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            seconds, rate = _stated_seconds(container), stream.average_rate or stream.guessed_rate or 25
            for frame in container.decode(video=0):
                count += 1
                since = (frame.pts or 0) - (stream.start_time or 0) + (frame.duration or 0)
                end = max(end, float(since * stream.time_base), count / float(rate))
                # Phones store upright frames sideways, with the counterclockwise rotation to apply.
                array = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                yield torch.from_numpy(array.copy()).permute(2, 0, 1)
    except (av.error.FFmpegError, IndexError) as error:  # IndexError: there is no video stream
        if is_passing(error):
            error.add_note(f"This happened while reading {path}.")
            raise
        with naming(path):
            reason = _describe_unread(path)
        if not reason:
            stated = getattr(error, "strerror", None)
            reason = f"it is damaged, or no video ({stated})" if stated else "it has no pictures"
        raise ValueError(f"{path} cannot be read as a video: {reason}") from error
    if not count:
        raise ValueError(f"{path} cannot be read as a video: it is damaged or cut off, and has no frame")
    # Stated lengths are inexact, and the last frame may be shown for longer.
    if doubts is not None and end < 0.9 * seconds - 0.5:
        doubts.append(
            f"{path} is probably cut off: its {count} frames end at {end:.1f} of {seconds:.1f} seconds; "
            "copy or download it again"
        )


def _describe_unread(path: Path) -> str:
    """Returns what a file is that is no video, "" if it is not recognized."""
    with path.open("rb") as file:
        start = file.read(512)
    return describe_text(start) if start else "it is empty"


def _stated_seconds(container: Any) -> float:
    """Returns the length of the video that the file states, 0 if it states none."""
    stream = container.streams.video[0]
    if container.format.name == "avi" and stream.average_rate:  # its duration follows the size of the file
        return float(stream.frames / stream.average_rate)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    stated = re.match(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))  # of Matroska, WebM
    if stated:
        hours, minutes, seconds = map(float, stated.groups())
        return 3600 * hours + 60 * minutes + seconds
    # That of the file includes sound, which may be longer.
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


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
