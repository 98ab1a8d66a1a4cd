"""Whatever bytes, words and numbers a parser is given, it reads them or says what is wrong."""

import io
import json
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from config import Config, parse
from cpsl.data import SegmentationFolder, SoftLabelStore
from cpsl.data.pseudo_labels import path_of
from cpsl.data.reading import png_size, read_image, read_png16, read_stored_label
from cpsl.engine import load, read_scalars
from cpsl.models import load_backbone_weights, read_release_checkpoint
from cpsl.models.resnet import resnet_tiny
from healthy import SETTINGS


def outcome(read: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """Returns what is read, or the message that says why it is not."""
    try:
        return read(*arguments), ""
    except ValueError as error:
        return None, str(error)


def parsed(path: Path) -> Config | int | str | None:
    """Returns settings, or the code that the program leaves with."""
    try:
        return parse(Config, ["--config", str(path)])
    except SystemExit as left:
        return left.code


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes of which a few are changed, cut out, put in, or cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "insert", "delete", "truncate"]))
        if kind == "change" and place < len(data):
            data[place] = draw(st.integers(0, 255))
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "delete":
            del data[place : place + draw(st.integers(1, 8))]
        elif kind == "truncate":
            del data[place:]
    return bytes(data)


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
PICTURES = {
    "PNG": encoded(NOISE),
    "JPEG": encoded(NOISE, "JPEG"),
    "GIF": encoded(NOISE[:, :, 0], "GIF"),
    "TIFF": encoded(NOISE, "TIFF"),
    "WEBP": encoded(NOISE, "WEBP"),
    "BMP": encoded(NOISE, "BMP"),
    "deep": encoded(NOISE[:, :, 0].astype(np.uint16) * 256),
}
LABEL = encoded(NOISE[:, :, 0])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "a.png"


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150)
@given(st.sampled_from(sorted(PICTURES)).flatmap(lambda kind: damaged(PICTURES[kind])))
@example(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
def test_a_damaged_picture_is_read_or_named(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    image, message = outcome(read_image, file)
    if image is None:
        assert str(file) in message
    else:
        assert image.dtype == torch.uint8
        assert image.ndim == 3
    assert png_size(file) is None or min(png_size(file)) >= 0


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100)
@given(damaged(LABEL))
def test_a_damaged_label_is_right_or_named(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    stored, message = outcome(read_stored_label, file)
    if stored is None:
        assert str(file) in message
    else:
        np.testing.assert_array_equal(stored, NOISE[:, :, 0])


@settings(max_examples=100)
@given(damaged(PICTURES["deep"]))
def test_a_damaged_label_of_16_bits_is_right_or_named(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    values, message = outcome(read_png16, file)
    if values is None:
        assert str(file) in message
    else:
        np.testing.assert_array_equal(values, NOISE[:, :, 0].astype(np.uint16) * 256)


def test_a_small_file_of_many_zeros_is_not_unpacked(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 4, 4, 16, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(200_000_000), 9)), (b"IEND", b""))
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(c)) + k + c + bytes(4) for k, c in chunks)
    )
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=r"bomb\.png cannot be read: its data are not those of 4x4"
    ):
        read_png16(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


PROBABILITIES = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)).softmax(dim=0)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100)
@given(st.data())
def test_a_damaged_soft_label_is_right_or_named(file: Path, data: st.DataObject) -> None:
    store = SoftLabelStore(file.parent / "soft", num_classes=3)
    store.write("a", PROBABILITIES)
    whole = store.read("a")
    path = file.parent / "soft" / "a.png"
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    read, message = outcome(store.read, "a")
    if read is None:
        assert str(path) in message
        assert "delete it to have it made again" in message
    else:
        assert torch.equal(read, whole)


WORDS = st.sampled_from(
    ["=", "[", "]", '"', "\n", "#", "-", "--", ",", "true", "nan", "é", "\x00", "1e999"]
)


@settings(max_examples=40)
@given(st.data())
@example(None)
def test_damaged_settings_are_read_or_refused(file: Path, data: st.DataObject | None) -> None:
    text = SETTINGS
    for _ in range(data.draw(st.integers(1, 3)) if data else 0):
        place = data.draw(st.integers(0, len(text)))
        end = place + data.draw(st.integers(0, 6))
        text = text[:place] + data.draw(st.one_of(WORDS, st.text(max_size=4))) + text[end:]
    path = file.with_name("settings.toml")
    path.write_bytes(text.encode())
    assert parsed(path)


KEYS = st.text("abcdefghijklmnopqrstuvwxyz_-.", min_size=1, max_size=20)
VALUES = st.recursive(
    st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=40)
@given(
    table=st.sampled_from(["views", "self_label", "source", "given", "other"]),
    key=KEYS,
    value=VALUES,
)
def test_any_keys_and_values_are_read_or_refused(file: Path, table: str, key: str, value) -> None:
    path = file.with_name("any.toml")
    head = {"output": "r", "source": {"images": "a"}, "target": {"images": "b"}}
    head.setdefault(table, {})[key] = value
    path.write_text(tomli_w.dumps(head), encoding="utf-8")
    assert parsed(path)


def checkpoint(zipped: bool) -> bytes:
    state = {"conv1.weight": torch.ones(2), "layer5.head.1.weight": torch.ones(3, 2, 1, 1)}
    content = {
        "ResNet101": {"model_state": state, "prototypes_ema": torch.ones(3, 2)},
        "iter": 7,
        "best_iou": np.float64(0.5),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


CHECKPOINTS = {zipped: checkpoint(zipped) for zipped in (True, False)}


@settings(max_examples=200)
@given(st.booleans().flatmap(lambda zipped: damaged(CHECKPOINTS[zipped])))
def test_a_damaged_checkpoint_is_read_or_named(file: Path, data: bytes) -> None:
    path = file.with_name("a.pkl")
    path.write_bytes(data)
    for read in (
        read_release_checkpoint,
        load,
        lambda path: load_backbone_weights(resnet_tiny(), path),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, message = outcome(read, path)
        assert not message or str(path) in message


@given(
    ids=st.dictionaries(
        st.integers(-3, 70_000), st.one_of(st.integers(-3, 300), st.text(max_size=3))
    ),
    stored=st.lists(st.integers(0, 65_535), min_size=1, max_size=5),
)
def test_any_ids_lead_to_classes_or_a_message(file: Path, ids, stored: list[int]) -> None:
    folder = file.parent
    for part in ("images", "labels"):
        (folder / part).mkdir(exist_ok=True)
    Image.new("RGB", (len(stored), 1)).save(folder / "images" / "a.png")
    Image.fromarray(np.array([stored], np.uint16)).save(folder / "labels" / "a.png")
    classes = ["road", "car"]
    label, message = outcome(
        lambda: SegmentationFolder(folder / "images", folder / "labels", classes, ids=ids)[0].label
    )
    if label is None:
        assert "id" in message
    else:
        wanted = [classes.index(ids[n]) if isinstance(ids[n], str) else ids[n] for n in stored]
        assert label.tolist() == [wanted]


ROW = json.dumps({"iteration": 1, "loss": 0.5}).encode()


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


PARTS = st.sampled_from(
    ["..", ".", "", "/", "\\", "a", "ä", "\0", "~", "C:", "a b", "..png", "%2e%2e"]
)


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=12), st.lists(PARTS, max_size=5).map("/".join)))
def test_no_name_leads_out_of_its_folder(file: Path, name: str) -> None:
    folder = file.parent / "store"
    path, message = outcome(path_of, folder, name)
    if path is None:
        assert repr(name) in message
    else:
        assert folder.resolve() in path.resolve().parents
        assert path.suffix == ".png"
