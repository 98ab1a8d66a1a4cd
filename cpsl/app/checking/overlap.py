"""Images that two domains share: an evaluation on training images, a source that is its own target."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from cpsl.app.checking.words import fill, table
from cpsl.app.domain import Domain
from cpsl.data import SegmentationDataset
from cpsl.data.sample import files_of

HEAD = 1 << 16
"""Bytes of a file that are compared, if its size is that of a file of another domain."""

Digest = tuple[int, bytes]
"""Size of a file, and the checksum of its head."""


def warn_of_overlap(datasets: Mapping[str, SegmentationDataset], domains: Mapping[str, Domain]) -> list[str]:
    """Returns warnings about images of the evaluation or the target that are images of a source as well.

    Files are compared by their content, whatever their names. The images of a source with `from_target` may
    be among those of the target.

    Args:
        datasets: Data sets of the domains by name: "source" or "source 1", ..., "target", "evaluation".
        domains: Their settings.
    """
    texts = []
    for name in ("target", "evaluation"):
        for source in datasets:
            if name not in datasets or not source.startswith("source"):
                continue
            if name == "target" and domains[source].from_target:
                continue
            if shared := shared_images(datasets[name], datasets[source]):
                texts.append(_describe(name, source, shared, len(datasets[name])))
    return [fill(f"Warning: {text}") for text in texts]


def _describe(name: str, source: str, shared: list[Path], images: int) -> str:
    text = f"{name}: {len(shared)} of {images} images are also images of {source}, such as {shared[0]}. "
    if name == "evaluation":
        return text + "The IoU of images with which a network was trained says little about others"
    return text + f"There is nothing to adapt to: check the paths in {table(source)} and {table(name)}"


def shared_images(dataset: SegmentationDataset, other: SegmentationDataset) -> list[Path]:
    """Returns the image files of a data set whose content is that of an image of the other."""
    first, second = (
        [path for i in range(len(each)) if (path := files_of(each, i)[0]) is not None and path.is_file()]
        for each in (dataset, other)
    )
    sizes = [{path: path.stat().st_size for path in paths} for paths in (first, second)]
    common = set(sizes[0].values()) & set(sizes[1].values())
    of_other = {_digest(path, size) for path, size in sizes[1].items() if size in common}
    return [path for path, size in sizes[0].items() if size in common and _digest(path, size) in of_other]


def _digest(path: Path, size: int) -> Digest:
    with path.open("rb") as file:
        return size, hashlib.sha256(file.read(HEAD)).digest()
