"""What a file is that was expected to be another, such as a web page in place of a download."""

import re
import tarfile
import zipfile
from pathlib import Path

_LONGEST = 512  # bytes that are read
_BINARY = (
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ", "an xz archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"Rar!", "a rar archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes: convert it to a state dict of torch"),
    (b"\x93NUMPY", "an array of NumPy, not a state dict"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"%PDF", "a PDF"),
)


_TORCH = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
"""Number at the start of the pickles that torch wrote before 1.6."""


def is_safetensors(path: Path) -> bool:
    """Returns whether a file begins like one of safetensors: the length of its header, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return (
        len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size
    )


def describe_file(path: Path) -> str:
    """Returns what a file is that cannot be read as tensors, and what to do; "" if it is not recognized.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "weights.pth")
        >>> _ = path.write_text("<!DOCTYPE html><title>Sign in</title>")
        >>> describe_file(path)[:61]
        'it is an HTML page, not the file: download the file that the '
    """
    if path.is_dir():
        return "it is a folder"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_LONGEST)
    if not start:
        return "it is empty: download or copy it again"
    if start.startswith(b"PK"):
        return _describe_zip(path, size)
    if tarfile.is_tarfile(path):
        return _describe_tar(path)
    if re.match(rb"\x80[\2-\5]", start) and b"numpy" in start and _TORCH not in start:
        arrays = "pickle.load(open(FILE, 'rb'))"
        return f"it is a pickle of NumPy arrays: {_store(arrays)}, if you trust the file"
    if is_safetensors(path):
        return "it is a file of safetensors, not of torch"
    if start[:1] == b"\x08" and start[2:3] == b"\x12" and (path.suffix == ".onnx" or b"pytorch" in start):
        return "it is a program of ONNX, not a state dict"
    for signature, what in _BINARY:
        if start.startswith(signature):
            return f"it is {what}"
    return describe_text(start)


def describe_text(start: bytes) -> str:
    """Returns what a text is that was expected to be another file, given its first bytes; "" for no text.

    Example:
        >>> describe_text(b"version https://git-lfs.github.com/spec/v1")
        'it is a Git LFS pointer, not the file itself: git lfs pull downloads the file'
    """
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: git lfs pull downloads the file"
    text = _text(start.rstrip(b"\0"))  # interrupted downloads may end in zeros
    if re.match(r"\s*<(!|\?xml|html|head|body|svg)", text, re.IGNORECASE):
        return _describe_markup(text)
    return f"it is a text that begins with {text[:40]!r}, not the file" if text else ""


def _describe_markup(text: str) -> str:
    """Returns what a document of HTML or XML is: a page, the error message of a server, or another."""
    shown = re.sub(r"<!--.*?(-->|$)", "", text, flags=re.DOTALL)
    tag = re.search(r"<(?:!doctype\s+)?([a-z][\w:.-]*)", shown, re.IGNORECASE)
    name = tag[1] if tag else "html"
    if name.lower() in ("html", "head", "body"):
        return "it is an HTML page, not the file: download the file that the page links to, not the page"
    if name == "Error":  # of Amazon S3 and services like it
        code = re.search(r"<Code>(\w+)", shown)
        said = f" ({code[1]})" if code else ""
        return f"it is an error message of a server{said}, not the file: correct the address, or sign in"
    return f"it is an XML document that begins with <{name}>, not the file"


def find_damage(path: Path) -> str:
    """Returns the first part of a zip archive that is damaged, "" if none is or the file is no archive."""
    if not zipfile.is_zipfile(path):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() or ""
    except Exception:  # zipfile raises errors of many types on broken bytes
        return "the directory"


def _describe_zip(path: Path, size: int) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises errors of many types on broken bytes
        return f"it is incomplete or damaged ({size:,} bytes): download or copy it again"
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return (
            "it is a TorchScript program: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE) stores its "
            "weights, if you trust the file"
        )
    if any(name.endswith(("models/model.json", "serialized_exported_program.json")) for name in names):
        return (
            "it is a program of torch.export: torch.save(torch.export.load(FILE).state_dict, NEW_FILE) "
            "stores its weights"
        )
    if names and all(name.endswith(".npy") for name in names):
        return f"it is an archive of NumPy arrays: {_store('numpy.load(FILE)')}"
    if any(name.endswith("/data.pkl") for name in names):
        return ""
    listed = ", ".join(names[:3]) or "nothing"
    return f"it is a zip archive that contains {listed}, not a file of torch: unpack it first"


def _store(arrays: str) -> str:
    """Returns how arrays by name are stored as a state dict, given the expression that reads them."""
    return (
        f"torch.save({{name: torch.from_numpy(array) for name, array in {arrays}.items()}}, NEW_FILE) stores "
        "them as a state dict"
    )


def _describe_tar(path: Path) -> str:
    with tarfile.open(path) as archive:
        names = [member.name for _, member in zip(range(3), archive, strict=False)]
    if "storages" in names:
        return (
            "it has the tar format of the first versions of torch: load it with one of them, and save it anew"
        )
    return f"it is a tar archive that contains {', '.join(names) or 'nothing'}: unpack it first"


def _text(start: bytes) -> str:
    """Returns the first bytes of a file as text, "" if they are none."""
    utf_16 = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = start[: len(start) // 2 * 2].decode("utf-16") if utf_16 else start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # a character at the end may be cut
            return ""
        text = start[: error.start].decode("utf-8-sig", "ignore")
    return text if all(character.isprintable() or character in "\t\r\n\f" for character in text) else ""
