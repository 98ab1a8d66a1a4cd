"""What `cpsl check` says about images that can be read: ranges, label maps, what is dropped, missing ends."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cpsl.app.checking.words import fill, table
from cpsl.app.domain import Domain
from cpsl.data import DatasetCheck, SegmentationDataset
from cpsl.data.appearance import Appearance, appearance_of, label_maps_among, value_range_of
from cpsl.data.matching import pattern_of_some
from cpsl.data.pictures import Range
from cpsl.data.sample import files_of, picture_of

DARK = 64
"""Colors of 16 bits that stay below, of 255, fill a quarter of their range."""

MIXED = 0.05
"""Share of gray images from which on they are not taken for a few exceptions, and of images in color."""

SAMPLED = 16
"""Images of each data set that are read before a run to find label maps among them."""


def warn_of_images(
    datasets: Mapping[str, SegmentationDataset],
    results: Mapping[str, DatasetCheck],
    domains: Mapping[str, Domain],
) -> list[str]:
    """Returns warnings about images that are probably not read as they should be.

    Args:
        datasets: Data sets of the domains by name: "source" or "source 1", ..., "target", "evaluation".
        results: Results of their check.
        domains: Their settings.
    """
    texts = [*_warn_of_ranges(results, domains), _warn_of_gray_domains(results)]
    for name, result in results.items():
        texts.append(_warn_of_label_maps(name, domains[name], datasets[name], result))
        texts.append(_warn_of_flat_ends(name, datasets[name], result))
        texts.append(_warn_of_fourth_channels(name, datasets[name], result))
        texts.append(_warn_of_further_pictures(name, datasets[name], result))
        texts.append(_warn_of_gray_images(name, domains[name], datasets[name], result))
    return [fill(f"Warning: {text}") for text in texts if text]


def warn_of_label_maps(
    datasets: Mapping[str, SegmentationDataset], domains: Mapping[str, Domain]
) -> list[str]:
    """Returns warnings about label maps among the images, after reading at most `SAMPLED` of each data set.

    Args:
        datasets: Data sets of the domains by name.
        domains: Their settings.
    """
    texts = []
    for name, dataset in datasets.items():
        if domains[name].dataset != "folder":
            continue
        paths = [files_of(dataset, index)[0] for index in range(len(dataset))]
        first = random.Random(0).sample(range(len(paths)), min(SAMPLED // 2, len(paths)))
        # A label map beside its image is the next or the previous file.
        chosen = sorted({*first, *(min(index + 1, len(paths) - 1) for index in first)})
        looks = [_look(dataset, index) for index in chosen]
        texts.append(_describe_label_maps(name, domains[name], [paths[index] for index in chosen], (), looks))
    return [fill(text) for text in texts if text]


def _look(dataset: SegmentationDataset, index: int) -> Appearance | None:
    try:
        return appearance_of(picture_of(dataset, index))
    except (OSError, ValueError):
        return None  # training names the file when it reads it


def _warn_of_ranges(results: Mapping[str, DatasetCheck], domains: Mapping[str, Domain]) -> list[str]:
    """Warns of values that fill a small part of their range, and of domains with different ranges."""
    texts, ranges = list[str](), dict[str, Range | None]()
    for name, result in results.items():
        domain, looks = domains[name], [look for look in result.appearances if look is not None]
        deep = [look for look in looks if look.bits > 8]
        if not deep:
            if looks and domain.value_range:
                texts.append(
                    f"{name}: value_range has no effect, since no image has more than 8 bits: remove it from "
                    f"the table {table(name)}"
                )
            continue
        gray = [look for look in deep if look.gray]
        proposed = value_range_of(gray, domain.value_range) if domain.dataset == "folder" else None
        if proposed:
            low, high = min(look.low for look in gray), max(look.high for look in gray)
            unscaled = domain.value_range is None and any(look.bits == 32 for look in gray)
            read = (
                "" if unscaled else f", but are read as if black and white were {_said(domain.value_range)}"
            )
            texts.append(
                f"{name}: {len(gray)} of {result.images} images hold gray values from {low:.6g} to {high:.6g}"
                f"{read}. In the table {table(name)}:\nvalue_range = [{proposed[0]}, {proposed[1]}]"
            )
        elif gray:
            ranges[name] = domain.value_range
        elif (brightest := max(look.high for look in deep)) < DARK:
            texts.append(
                f"{name}: {len(deep)} of {result.images} images have colors of 16 bits, but no value above "
                f"{256 * brightest + 255:.0f} of 65535, so that they are nearly black. Convert them to 8 "
                "bits; value_range is for gray images"
            )
    if len(set(ranges.values())) > 1:
        listed = ", ".join(f"{_said(limits)} in {table(name)}" for name, limits in ranges.items())
        texts.append(
            f"images of more than 8 bits are read with different black and white: {listed}. Set the same "
            "value_range, unless their cameras store values differently"
        )
    return texts


def _said(value_range: Range | None) -> str:
    low, high = value_range or (0, 65535)
    return f"{low:g} and {high:g}" + ("" if value_range else " (no value_range)")


def _warn_of_label_maps(name: str, domain: Domain, dataset: SegmentationDataset, result: DatasetCheck) -> str:
    if domain.dataset != "folder":
        return ""
    paths = [files_of(dataset, index)[0] for index in range(len(dataset))]
    return _describe_label_maps(name, domain, paths, getattr(dataset, "skipped", {}), result.appearances)


def _describe_label_maps(
    name: str,
    domain: Domain,
    paths: Sequence[Path | None],
    skipped: Iterable[Path],
    looks: Sequence[Appearance | None],
) -> str:
    """Describes label maps among images, with the pattern that excludes them, "" if there are none."""
    if domain.images is None:
        return ""
    names = [_relative(path, domain.images) for path in paths]
    others = [_relative(path, domain.images) for path in skipped]
    found = label_maps_among(names, looks, [path for path in others if path])
    if found is None:
        return ""
    text = (
        f"{name}: {len(found.names)} of {len(names)} images that were read look like label maps, with few "
        f"colors in flat areas, such as {_examples(found.names)}"
    )
    if len(found.names) == sum(look is not None for look in looks):
        return f"{text}. Check the path `images`"
    if found.image_pattern is None:
        return f"{text}. Move them to another folder, since no image_pattern tells them from the others"
    return f'{text}. If they are, write in the table {table(name)}:\nimage_pattern = "{found.image_pattern}"'


def _warn_of_flat_ends(name: str, dataset: SegmentationDataset, result: DatasetCheck) -> str:
    """Warns of images that seem to be cut off."""
    found = [i for i, look in enumerate(result.appearances) if look is not None and look.ends_flat]
    if not found:
        return ""
    files = [str(files_of(dataset, index)[0] or dataset.names[index]) for index in found]
    return (
        f"{name}: the last rows of {len(found)} of {result.images} images have one color, as if the files "
        f"were cut off, such as {_examples(files)}"
    )


def _warn_of_fourth_channels(name: str, dataset: SegmentationDataset, result: DatasetCheck) -> str:
    """Warns of values beside the colors that are dropped, such as transparency or infrared."""
    ranges = {i: look.fourth for i, look in enumerate(result.appearances) if look and look.fourth}
    if not ranges:
        return ""
    known = [value for extent in ranges.values() for value in extent if not math.isnan(value)]
    values = f", with values from {min(known):g} to {max(known):g}" if known else ""
    first = next(iter(ranges))
    example = files_of(dataset, first)[0] or dataset.names[first]
    return (
        f"{name}: {len(ranges)} of {result.images} images have a channel beside their colors, such as "
        f"transparency or infrared{values}, for example {example}. It is dropped"
    )


def _warn_of_further_pictures(name: str, dataset: SegmentationDataset, result: DatasetCheck) -> str:
    """Warns of files with several pages or frames: the first, which is used, may be a thumbnail."""
    found = [index for index, look in enumerate(result.appearances) if look is not None and look.several]
    if not found:
        return ""
    example = files_of(dataset, found[0])[0] or dataset.names[found[0]]
    return (
        f"{name}: {len(found)} of {result.images} images have several pages or frames, such as {example}. "
        "The first is used"
    )


def _warn_of_gray_images(
    name: str, domain: Domain, dataset: SegmentationDataset, result: DatasetCheck
) -> str:
    """Warns of a mixture of gray images and images in color, such as of two cameras."""
    gray, colored = list[Path | None](), list[Path | None]()
    for index, look in enumerate(result.appearances):
        if look is not None and look.is_label_like is False:
            (gray if look.colorless else colored).append(files_of(dataset, index)[0])
    if min(len(gray), len(colored)) < max(1, MIXED * result.images):
        return ""
    text = (
        f"{name}: {len(gray)} of {result.images} images are gray and {len(colored)} in color, such as "
        f"{gray[0]} and {colored[0]}. If they come from two cameras, use one"
    )
    if domain.dataset != "folder" or domain.images is None:
        return text
    skipped = getattr(dataset, "skipped", {})
    kept, others = (
        [_relative(path, domain.images) for path in paths] for paths in (colored, [*gray, *skipped])
    )
    pattern = pattern_of_some(kept, [other for other in others if other])
    return text + (f', in the table {table(name)}:\nimage_pattern = "{pattern}"' if pattern else "")


def _warn_of_gray_domains(results: Mapping[str, DatasetCheck]) -> str:
    """Warns of domains in which all images are gray, beside others in which all are in color."""
    gray, colored = list[str](), list[str]()
    for name, result in results.items():
        looks = [look.colorless for look in result.appearances if look is not None]
        if looks and len(set(looks)) == 1:
            (gray if looks[0] else colored).append(name)
    if not gray or not colored:
        return ""
    return (
        f"all images of {' and '.join(gray)} are gray, all of {' and '.join(colored)} in color. Unless this "
        "is meant, such as for infrared, correct `images` or image_pattern"
    )


def _examples(names: Sequence[str]) -> str:
    return " and ".join(names[:2])


def _relative(path: Path | None, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path is not None and path.is_relative_to(folder) else ""
