"""Folders of results, which must not be those of data."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

from cpsl.data.pseudo_labels import is_own, path_of


def refuse_overlaps(results: Mapping[str, Path | None], data: Mapping[str, Path]) -> None:
    """Raises ValueError if results would be written among data, where they may replace files of their name.

    Folders of results must also differ from each other; they may lie in each other.

    Args:
        results: Folder of each option that writes results.
        data: Folder of each setting that names data.

    Example:
        >>> refuse_overlaps({"--colors": Path("a/b")}, {"target.root": Path("a")})
        Traceback (most recent call last):
        ValueError: --colors a/b would put results among the data of target.root, a: choose another folder
    """
    written = {name: folder for name, folder in results.items() if folder is not None}
    for (first, one), (second, other) in combinations(written.items(), 2):
        if one.resolve() == other.resolve():
            raise ValueError(f"{first} and {second} would replace the files of each other in {one}")
    for option, folder in written.items():
        for name, of_data in data.items():
            if _overlap(folder.resolve(), of_data.resolve()):
                raise ValueError(
                    f"{option} {folder} would put results among the data of {name}, {of_data}: "
                    "choose another folder"
                )


def refuse_results(results: Mapping[str, Path | None]) -> None:
    """Raises ValueError if files would be written among the results of a run or of `cpsl predict`.

    These do not tell which network made them: the report of the run would show those of another one.

    Args:
        results: Folder of each option that writes results.
    """
    for option, folder in results.items():
        for place in (folder.resolve(), *folder.resolve().parents) if folder is not None else ():
            of_run = (place.parent / "run.json").exists() and (place / "metrics.json").exists()
            if of_run or (place / "prediction.json").exists():
                owner = "a stage of a run" if of_run else "the output of cpsl predict"
                raise ValueError(
                    f"{option} {folder} is in {place}, {owner}, whose results could be replaced: "
                    "choose another folder"
                )


def refuse_foreign(folder: Path, names: Iterable[str]) -> None:
    """Raises ValueError if results of these names would replace files that are no results.

    They may be labels of a data set that no setting names.
    """
    for path in (path_of(folder, name) for name in names) if folder.exists() else ():
        if path.exists() and not is_own(path):
            raise ValueError(
                f"{path} exists and is no result of cpsl, which would replace it: choose a new folder"
            )


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)
