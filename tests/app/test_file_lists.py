import os
import shutil
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cpsl.app import file_lists
from cpsl.app.file_lists import File, FileList, add_checksums, compare, stat_files

NAMES = st.sampled_from("abcdef")
CONTENT = st.binary(min_size=1, max_size=3)


def write(folder: Path, contents: dict[str, bytes], time: int) -> None:
    """Writes files, all with one modification time."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        os.utime(folder / name, (time, time))


def with_status(files: FileList, time: int) -> FileList:
    return {path: file._replace(status_time=time) for path, file in files.items()}


@given(
    before=st.dictionaries(NAMES, CONTENT),
    after=st.dictionaries(NAMES, CONTENT),
    kept=st.sets(NAMES),
    new_time=st.booleans(),
    new_status=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_difference_is_found_where_all_checksums_are_known(
    tmp_path_factory,
    before: dict[str, bytes],
    after: dict[str, bytes],
    kept: set[str],
    new_time: bool,
    new_status: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "files"
    after |= {name: before[name] for name in kept & before.keys()}
    write(folder, before, 1000)
    recorded = add_checksums(with_status(stat_files([str(folder / name) for name in before]), 1), {})
    write(folder, after, 2000 if new_time else 1000)
    now = with_status(stat_files([str(folder / name) for name in after]), 2 if new_status else 1)
    difference = compare(recorded, now)

    def paths(names: set[str]) -> list[str]:
        return sorted(str(folder / name) for name in names)

    common = before.keys() & after.keys()
    equal = {name for name in common if before[name] == after[name]}
    resized = {name for name in common if len(before[name]) != len(after[name])}
    assert difference.added == paths(after.keys() - before.keys())
    assert difference.removed == paths(before.keys() - after.keys())
    # Without any new time, content of the same size is read only of files that share it with others.
    sizes = Counter(map(len, before.values()))
    shared = {name for name in common - equal if sizes[len(before[name])] > 1}
    assert difference.changed == paths(common - equal if new_time or new_status else resized | shared)
    assert difference.touched == paths(equal if new_time else set())
    assert bool(str(difference)) == bool(difference.changed or difference.added or difference.removed)


@given(st.integers(1, 40), st.data())
@settings(max_examples=40, deadline=None)
def test_a_copy_of_a_large_data_set_is_recognized_by_some_files(tmp_path_factory, count: int, data) -> None:
    folder, budget = tmp_path_factory.getbasetemp() / "copy", file_lists.CHECKED_BYTES
    contents = {f"{i:02}": bytes([i, i]) for i in range(count)}
    write(folder, contents, 1000)
    paths = [str(folder / name) for name in contents]
    file_lists.CHECKED_BYTES = 1
    try:
        recorded = add_checksums(stat_files(paths), {})
    finally:
        file_lists.CHECKED_BYTES = budget
    assert sum(bool(file.checksum) for file in recorded.values()) == min(count, file_lists.FEW)
    write(folder, contents, 2000)
    assert not str(compare(recorded, stat_files(paths)))
    # Some files alone with a new time may have been edited.
    edited = data.draw(st.sets(st.sampled_from(paths), max_size=count - 1))
    write(folder, contents, 1000)
    for path in edited:
        os.utime(path, (3000, 3000))
    unknown = sorted(path for path in edited if not recorded[path].checksum)
    assert compare(recorded, stat_files(paths)).changed == unknown


@given(st.lists(st.binary(min_size=1, max_size=3), min_size=2, max_size=9), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_swapped_files_of_a_large_data_set_are_found(tmp_path_factory, tails: list[bytes], random) -> None:
    folder, budget = tmp_path_factory.getbasetemp() / "swap", file_lists.CHECKED_BYTES
    contents = {f"{i:02}": bytes(10_000) + tail for i, tail in enumerate(tails)}
    write(folder, contents, 1000)
    paths = [str(folder / name) for name in contents]
    file_lists.CHECKED_BYTES, file_lists.FEW = 1, 1
    try:
        recorded = add_checksums(stat_files(paths), {})
    finally:
        file_lists.CHECKED_BYTES, file_lists.FEW = budget, 8
    assert add_checksums(stat_files(paths), recorded) == recorded
    order = list(contents)
    random.shuffle(order)
    swapped = {name: contents[other] for name, other in zip(contents, order, strict=True)}
    write(folder, swapped, 1000)
    expected = [str(folder / name) for name in contents if swapped[name] != contents[name]]
    assert compare(recorded, stat_files(paths)).changed == expected


def test_checksums_of_unchanged_files_are_kept_without_reading(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (path,) = files = stat_files([str(tmp_path / "a")])
    before = {path: files[path]._replace(checksum="known")}
    assert add_checksums(files, before) == before
    edited = with_status(files, files[path].status_time + 1)  # in place, under its old time
    assert add_checksums(edited, before)[path].checksum not in ("known", "")
    assert not str(compare(with_status(before, 0), edited))  # of a record without this time
    assert stat_files([str(tmp_path / "absent")])[str(tmp_path / "absent")] == File(-1, 0)
