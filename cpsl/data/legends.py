"""Legends: the colors of the classes as a picture, in a folder of predictions."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from cpsl._internal.files import is_passing
from cpsl.data.labels import LabelSpace
from cpsl.data.pseudo_labels import save_png

LEGEND = "legend.png"
"""Name of the file."""

ROWS, LINE = 20, 28
"""Most classes of a column, and the height of each in pixels."""

_KEY, _TITLE = "Title", "cpsl legend"  # text entry of the PNG, which images and labels do not have


def write_legend(folder: Path, classes: LabelSpace) -> Path | None:
    """Writes `legend.png` with color, index and name of each class, unless another file has this name.

    Such a file may be the result of an image of this name.

    Returns:
        The file, None if it was not written.

    Example:
        >>> import tempfile
        >>> from cpsl.data import CITYSCAPES_19
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_legend(folder, CITYSCAPES_19) == folder / "legend.png"
        True
    """
    path = folder / LEGEND
    if path.exists() and not is_legend(path):
        return None
    note = PngImagePlugin.PngInfo()
    note.add_text(_KEY, _TITLE)
    save_png(path, draw_legend(classes), note)
    return path


def draw_legend(classes: LabelSpace) -> Image.Image:
    """Draws color, index and name of each class, black on white, in columns of at most 20.

    Letters that Pillow's own font lacks are drawn as boxes; the index tells which class it is.

    Example:
        >>> from cpsl.data import CITYSCAPES_19
        >>> draw_legend(CITYSCAPES_19.subset(("road", "sky"))).height
        64
    """
    font = ImageFont.load_default(size=18)
    lines = [name.replace("\n", " ") for name in classes.names]
    number_width = round(font.getlength(str(len(lines) - 1)))
    width = 62 + number_width + round(max(font.getlength(line) for line in lines))
    columns = -(-len(lines) // ROWS)
    rows = -(-len(lines) // columns)
    picture = Image.new("RGB", (columns * width + 8, rows * LINE + 8), "white")
    draw = ImageDraw.Draw(picture)
    for index, (line, color) in enumerate(zip(lines, classes.palette, strict=True)):
        left, top = index // rows * width + 8, index % rows * LINE + 8
        middle = top + LINE // 2 - 4
        draw.rectangle((left, top, left + 29, top + LINE - 9), fill=color, outline="gray")
        draw.text((left + 38 + number_width, middle), str(index), fill="black", font=font, anchor="rm")
        draw.text((left + 46 + number_width, middle), line, fill="black", font=font, anchor="lm")
    return picture


def is_legend(path: Path) -> bool:
    """Returns whether a file is a result of `write_legend`, which is neither an image nor a label."""
    if path.name != LEGEND:  # nearly all files, which need not be opened
        return False
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get(_KEY) == _TITLE
    except Exception as error:  # Pillow's parsers raise nearly anything on broken bytes
        if is_passing(error):
            raise
        return False
