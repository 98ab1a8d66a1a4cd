"""What `cpsl check` adds about folders: lines to copy, files that are not read, rotated pictures."""

from cpsl.app.checking.words import table
from cpsl.app.domain import Domain
from cpsl.data import LabelSpace, SegmentationDataset, propose_settings, rotated_images
from cpsl.data.files import describe_skipped
from cpsl.data.orientation import HasOrientation
from cpsl.data.sample import files_of


def propose(name: str, domain: Domain, classes: LabelSpace) -> str:
    """Returns lines of settings with which the labels of a folder could be read, "" if there are none.

    A class that only a person knows is written "?".
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
        )
    except (OSError, ValueError):
        return ""  # a folder is missing, which is a problem of its own
    if not proposal.lines:
        return ""
    lines = [f"{name}: proposed for the table {table(name)}:", *(f"    {line}" for line in proposal.lines)]
    unknown = any('"?"' in line for line in proposal.lines)
    notes = [*proposal.notes, *['replace each "?" by a class or by "ignore"'] * unknown]
    return "\n".join([*lines, *(f"  {note}" for note in notes)])


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
