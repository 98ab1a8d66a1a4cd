from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cpsl.data.pictures import read_image, read_picture


@st.composite
def pgms(draw: st.DrawFn) -> tuple[int, list[int]]:
    white = draw(st.sampled_from([256, 1000, 1023, 4095, 16383, 65534, 65535]) | st.integers(256, 65535))
    return white, [0, white, *draw(st.lists(st.integers(0, white), max_size=20))]


@given(pgms(), st.booleans())
def test_a_pgm_has_the_values_of_its_file(pgm: tuple[int, list[int]], binary: bool) -> None:
    white, values = pgm
    text = " ".join(map(str, values)).encode()
    body = np.array(values, ">u2").tobytes() if binary else text
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.pgm")
        path.write_bytes(b"P%d %d 1 %d\n" % (5 if binary else 2, len(values), white) + body)
        picture = read_picture(path)
        assert picture.values is not None
        assert picture.values.tolist() == [values]
        assert picture.bits == white.bit_length()
        scaled = read_image(path, (0, white))[0, 0]
        assert torch.equal(scaled, (torch.tensor(values).double() * (255 / white)).round().byte())
        assert (scaled.int() - picture.pixels[0, 0]).abs().max() <= 1  # without a range, white is white too
        assert read_image(path, (0, 2 * white))[0, 0, 1] in (127, 128)


def test_a_pgm_and_a_png_of_12_bits_are_read_alike(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (8, 8)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 4095\n" + values.astype(">u2").tobytes())
    png, pgm = (read_image(tmp_path / name, (0, 4095)) for name in ("a.png", "a.pgm"))
    assert torch.equal(png, pgm)


@pytest.mark.filterwarnings("error")
@given(st.binary(min_size=1, max_size=4))
def test_transparent_colors_of_a_palette_have_their_color(opacity: bytes) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8)).convert("P")
    picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 7, 8, 9])
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.png")
        picture.save(path, transparency=opacity)
        pixels = read_image(path).permute(1, 2, 0)[0]
    assert pixels.tolist() == [[200, 0, 0], [0, 200, 0], [0, 0, 200], [7, 8, 9]]
