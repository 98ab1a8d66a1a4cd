"""What `cpsl check` adds about folders: lines to copy, files that are not read, rotated pictures."""

from collections.abc import Iterable

from cpsl.app.checking.words import table
from cpsl.app.domain import Domain
from cpsl.data import LabelSpace, SegmentationDataset, propose_settings, rotated_images
from cpsl.data.files import describe_skipped
from cpsl.data.orientation import HasOrientation
from cpsl.data.reading import read_header
from cpsl.data.sample import files_of


def propose(
    name: str, domain: Domain, classes: LabelSpace, rotated: SegmentationDataset | None = None
) -> str:
    """Returns lines of settings with which the labels of a folder could be read, "" if there are none.

    A value that only a person knows is written "?".

    Args:
        name: Name of the domain.
        domain: Its settings.
        classes: Label space of the run.
        rotated: The data set, if nothing tells whether some labels are rotated like their images.
    """
    if domain.dataset != "folder" or domain.images is None or domain.labels is None:
        return ""
    try:
        proposal = propose_settings(
            domain.images,
            domain.labels,
            classes,
            image_pattern=domain.image_pattern,
            label_pattern=domain.label_pattern,
            ids_given=bool(domain.ids or domain.first_id),
            skip_unpaired=domain.skip_unpaired,
        )
    except (OSError, ValueError):
        return ""  # a folder is missing, which is a problem of its own
    settings, notes = list(proposal.lines), list(proposal.notes)
    if any('"?"' in line for line in settings):
        notes.append('replace each "?" by a class or by "ignore"')
    if rotated is not None:
        line, note = _propose_orientation(rotated)
        settings.append(line)
        notes.append(note)
    if not settings:
        return ""
    lines = [f"{name}: proposed for the table {table(name)}:", *(f"    {line}" for line in settings)]
    return "\n".join([*lines, *(f"  {note}" for note in notes)])


def _propose_orientation(dataset: SegmentationDataset) -> tuple[str, str]:
    """Returns the setting that the size of other labels suggests, and the reason."""
    assert isinstance(dataset, HasOrientation)
    count = _count_conventions(dataset, rotated_images(dataset))
    found = [convention for convention, number in count.items() if number]
    if len(found) == 1:
        number = count[found[0]]
        return (
            f'label_orientation = "{found[0]}"',
            f"label_orientation follows from the size of {number} labels",
        )
    return (
        'label_orientation = "?"',
        'replace the "?" of label_orientation by "rotated" if labels belong to the displayed pictures, or by '
        '"stored" if they belong to the stored pixels',
    )


def _count_conventions(dataset: SegmentationDataset, names: Iterable[str]) -> dict[str, int]:
    """Counts labels of rotated images that have only the rotated picture's size, or only the stored one's."""
    count, index_of = {"rotated": 0, "stored": 0}, {name: i for i, name in enumerate(dataset.names)}
    for name in names:
        image, label = files_of(dataset, index_of[name])
        if image is None or label is None:
            continue
        try:
            (size, orientation), (labeled, own) = read_header(image), read_header(label)
        except (OSError, ValueError):
            continue
        as_stored = labeled[::-1] if orientation >= 5 else labeled
        if own == 1 and (labeled == size) != (as_stored == size):
            count["rotated" if labeled == size else "stored"] += 1
    return count


def describe_files(name: str, dataset: SegmentationDataset) -> list[str]:
    """Returns what is easily overlooked: files that are not read, and pictures that EXIF rotates."""
    lines = []
    if skipped := describe_skipped(getattr(dataset, "skipped", {})).removeprefix("; it has "):
        lines.append(f"{name}: not read: {skipped}")
    if isinstance(dataset, HasOrientation) and (rotated := rotated_images(dataset)):
        example, orientation = next(iter(rotated.items()))
        labeled = files_of(dataset, dataset.names.index(example))[1] is not None
        advice = "; label_orientation says whether labels follow the rotated pictures or the stored pixels"
        lines.append(
            f"{name}: EXIF rotates {len(rotated)} of {len(dataset)} images, such as {example} ({orientation})"
            f"{advice if labeled else ''}"
        )
    return lines
