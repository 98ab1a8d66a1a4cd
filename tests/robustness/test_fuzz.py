"""Readers of files get damaged bytes and arbitrary values: they read them, or the error names the file."""

import io
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.authors import read_release_checkpoint
from cpsl.data import SoftLabelStore
from cpsl.data.pictures import read_image
from cpsl.data.pseudo_labels import path_of
from cpsl.data.reading import read_png16, read_stored_label
from cpsl.models import load_backbone_weights
from cpsl.models.resnet import resnet_tiny
from cpsl.training import load, read_scalars
from project import SETTINGS

pytestmark = pytest.mark.filterwarnings("ignore")


def outcome(read: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """Returns what is read, or the message of a ValueError."""
    try:
        return read(*arguments), ""
    except ValueError as error:
        return None, str(error)


def parsed(path: Path) -> Config | int | str | None:
    """Returns settings, or the code with which the command exits."""
    try:
        return parse(["--config", str(path)])
    except SystemExit as ended:
        return ended.code


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Samples copies of a file with a few bytes changed, inserted, deleted, or cut off at the end."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "insert", "delete", "truncate"]))
        if kind == "change" and start < len(data):
            data[start] = draw(st.integers(0, 255))
        elif kind == "insert":
            data[start:start] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "delete":
            del data[start : start + draw(st.integers(1, 8))]
        elif kind == "truncate":
            del data[start:]
    return bytes(data)


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def checkpoint(zipped: bool) -> bytes:
    state = {"conv1.weight": torch.ones(2), "layer5.head.1.weight": torch.ones(3, 2, 1, 1)}
    network = {"model_state": state, "prototypes_ema": torch.ones(3, 2)}
    buffer = io.BytesIO()
    torch.save({"ResNet101": network, "iter": 7}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def soft_label() -> bytes:
    with TemporaryDirectory() as folder:
        probabilities = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)).softmax(0)
        SoftLabelStore(folder).write("a", probabilities)
        return (Path(folder) / "a.png").read_bytes()


NOISE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
GRAY, DEEP = NOISE[:, :, 0], NOISE[:, :, 0].astype(np.uint16) * 256
PICTURES = [encoded(NOISE, kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP")]
PICTURES += [encoded(GRAY, "GIF"), encoded(DEEP)]
CHECKPOINTS = [checkpoint(zipped=True), checkpoint(zipped=False)]
# What reads each kind of file, and files that are whole.
FILES: dict[str, tuple[Callable[[Path], Any], list[bytes]]] = {
    "picture": (read_image, PICTURES),
    "label": (read_stored_label, [encoded(GRAY)]),
    "label of 16 bits": (read_png16, [encoded(DEEP)]),
    "soft label": (lambda path: SoftLabelStore(path.parent, 3).read(path.stem), [soft_label()]),
    "checkpoint": (load, CHECKPOINTS),
    "release": (read_release_checkpoint, CHECKPOINTS),
    "weights": (lambda path: load_backbone_weights(resnet_tiny(), path), CHECKPOINTS),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "a.png"


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_file_is_read_or_named(kind: str, file: Path, data: st.DataObject) -> None:
    read, files = FILES[kind]
    whole = data.draw(st.sampled_from(files))
    file.write_bytes(whole)
    expected, _ = outcome(read, file)
    file.write_bytes(data.draw(damaged(whole)))
    found, message = outcome(read, file)
    if message:
        assert str(file) in message
    elif "label" in kind:  # a checksum protects the values
        np.testing.assert_array_equal(found, expected)


def test_a_small_file_is_not_unpacked_to_a_large_one(file: Path) -> None:
    header = struct.pack(">IIBBBBB", 4, 4, 16, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(200_000_000), 9)), (b"IEND", b""))
    parts = [struct.pack(">I", len(data)) + name + data + bytes(4) for name, data in chunks]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    tracemalloc.start()
    _, message = outcome(read_png16, file)
    assert str(file) in message
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


WORDS = st.sampled_from(["=", "[", "]", '"', "\n", "#", "--", ",", "true", "nan", "\x00", "1e999"])
KEYS = st.text("abcdefghijklmnopqrstuvwxyz_-.", min_size=1, max_size=20)
VALUES = st.recursive(
    st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=40)
@given(st.data())
def test_damaged_settings_are_read_or_refused(file: Path, data: st.DataObject) -> None:
    text = SETTINGS
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 6))
        text = text[:start] + data.draw(st.one_of(WORDS, st.text(max_size=4))) + text[end:]
    path = file.with_name("settings.toml")
    path.write_bytes(text.encode())
    assert parsed(path)


TABLES = st.sampled_from(["views", "self_label", "source", "init_from", "other"])


@settings(max_examples=40)
@given(table=TABLES, key=KEYS, value=VALUES)
def test_any_keys_and_values_are_read_or_refused(file: Path, table: str, key: str, value) -> None:
    path = file.with_name("any.toml")
    content = {"output": "r", "source": {"images": "a"}, "target": {"images": "b"}}
    content.setdefault(table, {})[key] = value
    path.write_text(tomli_w.dumps(content), encoding="utf-8")
    assert parsed(path)


ROW = b'{"iteration": 1, "loss": 0.5}'


@given(
    st.one_of(
        st.binary(),
        damaged(b"\n".join([ROW] * 4)),
        VALUES.map(lambda value: json.dumps(value).encode()),
        st.just(b"[" * 100_000),
    )
)
def test_any_curves_are_read(file: Path, data: bytes) -> None:
    (file.parent / "scalars.jsonl").write_bytes(data + b"\n" + ROW + b"\n")
    rows = read_scalars(file.parent)
    assert rows[-1] == json.loads(ROW)
    for row in rows:
        assert "iteration" in row
        assert all(np.isfinite(value) for value in row.values())


PARTS = ["..", ".", "", "/", "\\", "a", "ä", "\0", "~", "C:", "a b", "..png", "%2e%2e"]


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=12), st.lists(st.sampled_from(PARTS), max_size=5).map("/".join)))
def test_no_name_escapes_its_folder(file: Path, name: str) -> None:
    folder = file.parent / "store"
    path, message = outcome(path_of, folder, name)
    if path is None:
        assert repr(name) in message
    else:
        assert folder.resolve() in path.resolve().parents
        assert path.suffix == ".png"
