"""Stored numbers and colors of label files of all formats, and the classes they stand for."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cpsl.data.formats import PNG_SIGNATURE
from cpsl.data.labels import IGNORE_INDEX, LabelSpace
from cpsl.data.palette import class_colors
from cpsl.data.reading import read_stored, read_stored_label
from cpsl.data.values import ClassMap, count_runs, count_stored_values, format_color, parse_color

CLASSES = LabelSpace(("road", "car", "sky"), class_colors(("road", "car", "sky")))
PATH = Path("label.png")


def png(values: npt.NDArray[np.integer], bits: int, palette: bool = False) -> bytes:
    """Writes (H, W) as a gray or palette PNG of 1 to 16 bits a pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = values.shape
    rows = b""
    for row in values.tolist():
        packed = "".join(f"{value:0{bits}b}" for value in row)
        packed += "0" * (-len(packed) % 8)
        rows += b"\0" + bytes(int(packed[i : i + 8], 2) for i in range(0, len(packed), 8))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0))]
    if palette:
        chunks.append((b"PLTE", bytes(channel for i in range(2**bits) for channel in (255 - i, i, 7))))
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(chunk(*each) for each in chunks)


@given(st.data())
def test_png_of_any_depth_holds_the_stored_numbers(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    bits, palette = data.draw(
        st.sampled_from(
            [
                (bits, palette)
                for bits in (1, 2, 4, 8, 16)
                for palette in (False, True)
                if bits < 9 or not palette
            ]
        )
    )
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 9)))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = random.integers(0, 2**bits, shape)
    path = tmp_path_factory.mktemp("png") / "a.png"
    path.write_bytes(png(values, bits, palette))
    np.testing.assert_array_equal(read_stored_label(path), values)
    if palette:
        colors = [
            [(255 - value) << 24 | value << 16 | 7 << 8 | 255 for value in row] for row in values.tolist()
        ]
        np.testing.assert_array_equal(read_stored(path, colors=True)[0], colors)


@pytest.mark.parametrize(
    "name", ["a.png", "a.tif", "a.bmp", "a.webp", "a.pgm", "lzw.tif", "16.tif", "16.pgm"]
)
def test_lossless_formats_hold_the_same_numbers_and_colors(tmp_path: Path, name: str) -> None:
    stored = np.array([[0, 1, 2, 19], [255, 128, 3, 7]], np.uint8)
    colors = np.dstack([stored, stored[::-1], stored.T.reshape(2, 4)])
    path = tmp_path / name
    options = {"compression": "tiff_lzw"} if "lzw" in name else {}
    if "webp" not in name:  # which has colors only
        numbers = stored.astype(np.uint16) * 257 if "16" in name else stored
        Image.fromarray(numbers).save(path, **options)
        np.testing.assert_array_equal(read_stored_label(path), numbers)
    if name[0] == "a" and name != "a.pgm":
        Image.fromarray(colors).save(path, **({"lossless": True} if "webp" in name else options))
        expected = [[int.from_bytes([*color, 255], "big") for color in row] for row in colors.tolist()]
        np.testing.assert_array_equal(read_stored(path, colors=True)[0], expected)


def test_a_gif_holds_colors(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    Image.fromarray(np.array([[0, 255, 19]], np.uint8)).save(path)
    assert read_stored(path, colors=True)[0].tolist() == [[0x000000FF, 0xFFFFFFFF, 0x131313FF]]
    with pytest.raises(ValueError, match=r"a\.gif.*colors"):
        read_stored_label(path)  # Pillow has stored 0, 1 and 2
    assert count_stored_values([path]).colors == {"#000000": 1, "#131313": 1, "#ffffff": 1}


def test_numbers_that_pillow_changes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 15\n\x01\x02")
    (tmp_path / "b.pbm").write_bytes(b"P4 2 1\n\x40")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "c.tif")
    Image.new("L", (2, 2)).save(tmp_path / "d.gif", save_all=True, append_images=[Image.new("L", (2, 2), 1)])
    Image.new("RGB", (2, 2)).save(tmp_path / "e.webp", quality=50)
    for name, words in (
        ("a.pgm", "scaled"),
        ("b.pbm", "white"),
        ("c.tif", "floating-point"),
        ("d.gif", "one picture"),
        ("e.webp", "WEBP.*tolerance"),
    ):
        with pytest.raises(ValueError, match=rf"{name} cannot be read: .*{words}"):
            read_stored_label(tmp_path / name)


@given(
    ids=st.dictionaries(st.integers(0, 2**24 - 1), st.sampled_from([0, 1, 2, 255]), min_size=1, max_size=6),
    data=st.data(),
)
def test_colors_have_their_class_or_are_named(ids: dict[int, int], data: st.DataObject) -> None:
    stored = data.draw(st.lists(st.sampled_from([*ids, 1, 2, 3]), min_size=1, max_size=30))
    keys = {format_color(color << 8 | 255): index for color, index in ids.items()}
    array = np.array([stored], np.uint32) << np.uint32(8) | np.uint32(255)
    unknown = [color for color in stored if color not in ids]
    mapped = ClassMap(CLASSES, keys)
    assert mapped.colors
    if unknown:
        with pytest.raises(ValueError, match=rf"label\.png has {len(set(unknown))} color") as error:
            mapped.convert(array, PATH)
        assert f"in {len(unknown)} of {len(stored)} pixels" in str(error.value)
        for color in set(unknown):
            assert f"{format_color(color << 8 | 255)} ({stored.count(color)} pixels)" in str(error.value)
    label = ClassMap(CLASSES, keys, ignore_unknown=True).convert(array, PATH)
    assert label.tolist() == [[ids.get(color, IGNORE_INDEX) for color in stored]]


@given(
    colors=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=4, unique=True),
    tolerance=st.integers(0, 60),
    pixels=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=20),
    noise=st.lists(st.tuples(st.integers(0, 3), *[st.integers(-60, 60)] * 3), max_size=20),
)
def test_inexact_colors_have_the_nearest_class_within_the_tolerance(
    colors: list[tuple[int, int, int]],
    tolerance: int,
    pixels: list[tuple[int, int, int]],
    noise: list[tuple[int, int, int, int]],
) -> None:
    def difference(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        return max(abs(x - y) for x, y in zip(a, b, strict=True))

    indices = [0, 1, 2, 255][: len(colors)]
    keys = {", ".join(map(str, color)): index for color, index in zip(colors, indices, strict=True)}
    gap = min((difference(a, b) for i, a in enumerate(colors) for b in colors[:i]), default=256)
    if gap <= tolerance:
        with pytest.raises(ValueError, match=f"tolerance {tolerance} must be less than {gap}"):
            ClassMap(CLASSES, keys, tolerance=tolerance)
        return
    for place, *shift in noise:
        base = colors[place % len(colors)]
        pixels = [*pixels, tuple(min(max(c + s, 0), 255) for c, s in zip(base, shift, strict=True))]
    expected = []
    for pixel in pixels:
        distances = sorted(
            (difference(pixel, color), index) for color, index in zip(colors, indices, strict=True)
        )
        unique = len(distances) == 1 or distances[0][0] < distances[1][0]
        expected.append(distances[0][1] if distances[0][0] <= tolerance and unique else IGNORE_INDEX)
    array = np.array([[int.from_bytes([*pixel, 255], "big") for pixel in pixels]], np.uint32)
    label = ClassMap(CLASSES, keys, tolerance=tolerance, ignore_unknown=True).convert(array, PATH)
    assert label.tolist() == [expected]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=40), st.integers(0, 60))
def test_inexact_numbers_have_the_nearest_class(stored: list[int], tolerance: int) -> None:
    ids = {0: 0, 100: "car", 255: 2}
    mapped = ClassMap(CLASSES, ids, tolerance=tolerance, ignore_unknown=True)
    label = mapped.convert(np.array([stored], np.uint16), PATH)
    for value, found in zip(stored, label[0].tolist(), strict=True):
        near = sorted((abs(value - key), index) for key, index in ((0, 0), (100, 1), (255, 2)))
        unique = near[0][0] < near[1][0]
        assert found == (near[0][1] if near[0][0] <= tolerance and unique else IGNORE_INDEX)


def test_transparent_colors_are_other_colors(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"#ff000000 \(1 pixels\)"):
        ClassMap(CLASSES, {"#ff0000": 1}).read(path)
    assert ClassMap(CLASSES, {"#ff0000": 1, "#ff000000": "ignore"}).read(path)[0].tolist() == [[1, 255]]


def test_jpeg_labels_need_a_tolerance(tmp_path: Path) -> None:
    colors = np.zeros((32, 32, 3), np.uint8)
    colors[:, 16:] = 250, 120, 10
    path = tmp_path / "a.jpg"
    Image.fromarray(colors).save(path, quality=95, subsampling=0)
    ids = {"#000000": 0, "250 120 10": 1}
    with pytest.raises(ValueError, match=r"a\.jpg.*JPEG.*tolerance"):
        ClassMap(CLASSES, ids).read(path)
    label, _ = ClassMap(CLASSES, ids, tolerance=40).read(path)
    assert label[:, :16].unique().tolist() == [0]
    assert label[:, 16:].unique().tolist() == [1]
    with pytest.raises(ValueError, match="tolerance 1 must be less than 1, the difference of 0 and 1"):
        ClassMap(CLASSES, tolerance=1)  # class indices would be lost in JPEG


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ({"red": 0}, "red.*#ff0000"),
        ({"#f00": 0}, "#f00"),
        ({"256, 0, 0": 0}, "256"),
        ({"#ff0000": 0, 7: 1}, "not both"),
        ({"#ff0000": 0, "255,0,0": 1}, "two classes"),
        ({"#ff0000": "tree"}, "point to tree"),
        ({"#ff0000": "?"}, r"point to \?"),
        ({70_000: 0}, "70000"),
    ],
)
def test_wrong_ids_are_named(ids: dict[int | str, int | str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClassMap(CLASSES, ids)
    if 70_000 in ids:
        with pytest.raises(ValueError, match=words):
            ClassMap(CLASSES, ids, tolerance=9)


@given(st.one_of(st.floats(), st.booleans(), st.from_regex(r"[0-9a-fA-F]{6}|[0-9a-fA-F]{8}", fullmatch=True)))
def test_keys_that_are_neither_numbers_nor_colors_are_named(key: float | str) -> None:
    meant = f'write "#{key}"' if isinstance(key, str) else repr(key)
    with pytest.raises(ValueError, match=re.escape(meant)):
        ClassMap(CLASSES, {key: 1})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("(0, 0, 0)", '"0, 0, 0"'),
        ("rgb(0,1,255)", '"0,1,255"'),
        ("#00f", '"#0000ff"'),
        ("00ff00", '"#00ff00"'),
        ("0xff0000", '"#ff0000"'),
        ("0x1f", "31"),
        ("007", "7"),
        ("navy", '"#000080"'),
    ],
)
def test_keys_of_another_form_are_refused_with_the_form_to_write(key: str, meant: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f'"{key}" is neither')) as refused:
        ClassMap(CLASSES, {key: 0})
    assert f"write {meant}" in str(refused.value)
    ClassMap(CLASSES, {int(meant) if meant.isdigit() else meant.strip('"'): 0})


@pytest.mark.parametrize("key", ["road", "traffic light", "orange"])
def test_classes_in_place_of_what_is_stored_are_to_be_swapped(key: str) -> None:
    with pytest.raises(ValueError, match=f'"{key}" .*swap the sides'):
        ClassMap(CLASSES, {key: 0})


@pytest.mark.parametrize("name", ["first_id", "tolerance"])
@pytest.mark.parametrize("value", ["1", 1.0, True, None])
def test_what_is_no_whole_number_is_named(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name}.*{value!r}"):
        ClassMap(CLASSES, **{name: value})  # type: ignore[arg-type]


def test_numbers_may_begin_at_any_first_id() -> None:
    mapped = ClassMap(CLASSES, first_id=2)
    assert mapped.convert(np.array([[0, 1, 2, 3, 4, 255]]), PATH).tolist() == [[255, 255, 0, 1, 2, 255]]
    with pytest.raises(ValueError, match=r"5 \(1 pixels\)"):
        mapped.convert(np.array([[5]]), PATH)
    with pytest.raises(ValueError, match="first_id"):
        ClassMap(CLASSES, {7: 0}, first_id=1)


@pytest.mark.parametrize("value", [-1, 65_536, -65_281, 2**31 - 1])
def test_numbers_outside_of_16_bits_are_unknown(value: int) -> None:
    with pytest.raises(ValueError, match=f"{value} "):
        ClassMap(CLASSES).convert(np.array([[value]], np.int32), PATH)


@given(st.lists(st.integers(-5, 5), max_size=50))
def test_runs_count_like_numpy(numbers: list[int]) -> None:
    stored = np.array([numbers], np.int32)
    values, inverse, counts = count_runs(stored)
    expected, of_pixel, pixels = np.unique(stored, return_inverse=True, return_counts=True)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(counts, pixels)
    np.testing.assert_array_equal(inverse(np.arange(len(values), dtype=np.uint8)), of_pixel.reshape(-1))


def test_stored_values_of_files_are_counted(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(paths[0])
    Image.new("RGB", (3, 1), "#010203").save(paths[1])
    paths[2].write_bytes(png(np.array([[2, 3]]), 2, palette=True))
    paths[3].touch()
    stored = count_stored_values(paths)
    assert stored.files == 3
    assert stored.modes == {"L": 1, "RGB": 1, "P": 1}
    assert stored.numbers == {0: 1, 2: 1, 3: 1, 255: 1}
    assert stored.colors == {"#010203": 3, "#fc0307": 1, "#fd0207": 1}
    assert "3.png" in stored.unreadable[0]


@given(st.integers(0, 2**32 - 1))
def test_colors_are_written_and_parsed(color: int) -> None:
    assert parse_color(format_color(color)) == color
    assert parse_color(str(list(color.to_bytes(4, "big")))) == color


@given(st.permutations(["0", "1", "2", "ignore", "255", "7", "sky"]), st.integers(1, 7), st.data())
def test_ids_never_choose_between_two_meanings(names: list[str], count: int, data: st.DataObject) -> None:
    classes = LabelSpace(tuple(names[:count]), class_colors(names[:count]))
    named = {name: index for index, name in enumerate(classes.names)}
    numbered = {"ignore": IGNORE_INDEX, **{str(index): index for index in [*range(count), IGNORE_INDEX]}}
    value = data.draw(st.sampled_from([*classes.names, *range(count), IGNORE_INDEX]))
    text = str(value)
    if named.get(text, numbered.get(text)) == numbered.get(text, named.get(text)):
        (index,) = ClassMap(classes, {9: value}).convert(np.array([[9]]), PATH).flatten().tolist()
        assert index == named.get(text, numbered.get(text))
    else:
        with pytest.raises(ValueError, match=rf"\bids\b.*\b{text}\b.*class {named[text]}\b"):
            ClassMap(classes, {9: value})
