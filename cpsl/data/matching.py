"""Proposals of patterns by which labels belong to images, and label maps recognized by their names."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import PurePosixPath
from typing import NamedTuple

from cpsl.data.names import Pattern, split_suffix

LABEL_WORDS = frozenset(
    (
        *("label", "labels", "labelid", "labelids", "labeltrainids", "lbl", "mask", "masks", "manual"),
        *("annotation", "annotations", "annot", "anno", "gt", "gts", "gtfine", "gtcoarse", "groundtruth"),
        *("truth", "seg", "segm", "segmentation", "segmentations", "semantic", "semantics", "panoptic"),
        *("instance", "instances", "instanceid", "instanceids", "trainids", "labelmap", "labelmaps"),
    )
)
"""Words in the names of label maps or their folders, in lower case."""

LABEL_HINT = re.compile(
    "lab|lbl|mask|ann|gt|groundtruth|truth|seg|semantic|manual|panoptic|instance|trainid", re.IGNORECASE
)
OTHER_MAPS = re.compile(
    "color|colour|inst|inv|panoptic|depth|disp|overlay|vis|preview|conf|bound|edge", re.IGNORECASE
)
"""Parts of the names of files beside label maps that do not hold one class number per pixel."""

NUMBER = re.compile(r"\d+(st|nd|rd|th)?")

SAMPLES = 20
"""Images whose names are compared with those of labels."""

KINDS = 6
"""Most kinds of labels of the same images."""


class PatternProposal(NamedTuple):
    """Patterns that match images and labels.

    Attributes:
        image_pattern: Value of the setting of this name.
        label_pattern: Value of the setting of this name.
        matched: Number of images for which there is a label.
    """

    image_pattern: str
    label_pattern: str
    matched: int

    def lines(self, image_pattern: str, label_pattern: str) -> list[str]:
        """Returns the settings that differ from the current ones.

        Example:
            >>> PatternProposal("*", "*_mask.png", 3).lines("*", "*")
            ['label_pattern = "*_mask.png"']
        """
        current = {"image_pattern": image_pattern, "label_pattern": label_pattern}
        proposed = {"image_pattern": self.image_pattern, "label_pattern": self.label_pattern}
        return [f'{name} = "{text}"' for name, text in proposed.items() if text != current[name]]


def propose_patterns(
    images: Sequence[str],
    labels: Sequence[str],
    *,
    other_images: Sequence[str] = (),
    other_labels: Sequence[str] = (),
) -> PatternProposal | None:
    """Returns the patterns that give most images a label, None if there are none for half of them.

    Args:
        images: Relative paths with slashes and extensions.
        labels: The same of the labels.
        other_images: Files that the pattern of the images must not match, unless it is "*".
        other_labels: The same for the labels.

    Example:
        >>> propose_patterns(["a/1_image.png", "b/2_image.png"], ["1_labels.png", "2_labels.png"])
        PatternProposal(image_pattern='**/*_image.png', label_pattern='*_labels.png', matched=2)
    """
    votes = Counter[tuple[str, str]]()
    candidates = _likely_pairs(sorted(images), sorted(labels))
    for image, label in candidates:
        pair = _generalize(split_suffix(image)[0], split_suffix(label)[0])
        if pair is not None:
            votes[pair] += 1
            votes[_without_folders(pair[0]), _without_folders(pair[1])] += 1
    best, best_score = None, (0, 0, 0)
    extensions = _common_extension(images), _common_extension(labels)
    for pair, _ in votes.most_common(12):
        first, second = (
            text + extension if text != "*" else text
            for text, extension in zip(pair, extensions, strict=True)
        )
        if _matches_any(first, other_images) or _matches_any(second, other_labels):
            continue
        matched = count_matches(images, labels, Pattern(first), Pattern(second))
        chosen = sum(1 for label in labels if Pattern(second).key(label))  # rather without superfluous labels
        score = matched, -chosen, -len(first + second)
        if 2 * matched >= len(images) and (best is None or score > best_score):
            best, best_score = PatternProposal(first, second, matched), score
    return best


def _matches_any(pattern: str, names: Sequence[str]) -> bool:
    return pattern != "*" and any(Pattern(pattern).key(name) for name in names)


def propose_all_patterns(
    images: Sequence[str], labels: Sequence[str], *, one_folder: bool = False
) -> list[PatternProposal]:
    """Returns the patterns of each kind of labels, if the images have several, the most likely kind first.

    Kinds that match more images come first, then class numbers before colors, instances and other maps, then
    labels before masks, which may be of the field of view, and the first of several numbered annotators.

    Example:
        >>> labels = ["a_color.png", "a_labelIds.png", "b_color.png", "b_labelIds.png"]
        >>> [kind.label_pattern for kind in propose_all_patterns(["a_img.png", "b_img.png"], labels)]
        ['*_labelIds.png', '*_color.png']
    """
    found, remaining, taken = list[PatternProposal](), list(labels), list(images) if one_folder else []
    while len(found) < KINDS:
        proposal = propose_patterns(
            images, remaining, other_images=labels if one_folder else (), other_labels=taken
        )
        if proposal is None:
            break
        found.append(proposal)
        pattern = Pattern(proposal.label_pattern)
        taken += [name for name in remaining if pattern.key(name)]
        remaining = [name for name in remaining if pattern.key(name) is None]
    forms = [NUMBER.sub("#", each.label_pattern) for each in found]
    return sorted(
        found,
        key=lambda each: (
            -each.matched,
            _unlikelihood(each.label_pattern),
            forms.index(NUMBER.sub("#", each.label_pattern)),
            [int(number) for number in re.findall(r"\d+", each.label_pattern)],
        ),
    )


def _unlikelihood(label_pattern: str) -> tuple[int, bool]:
    text = label_pattern.lower()
    return bool(OTHER_MAPS.search(text)) - bool(re.search("train_?id", text)), "mask" in text


def propose_other_images(
    images: Sequence[str], labels: Sequence[str], proposal: PatternProposal, others: Sequence[str] = ()
) -> list[PatternProposal]:
    """Returns the patterns of further images of the same labels, such as those of another channel.

    They match none of the `others`.

    Example:
        >>> images, labels = ["nir/a.png", "nir/b.png", "rgb/a.png", "rgb/b.png"], ["a.png", "b.png"]
        >>> proposal = PatternProposal("rgb/*.png", "*.png", 2)
        >>> [other.image_pattern for other in propose_other_images(images, labels, proposal)]
        ['nir/*.png']
    """
    found, fitting = [proposal], [name for name in labels if Pattern(proposal.label_pattern).key(name)]
    remaining, taken = list(images), list(others)
    while len(found) < KINDS:
        pattern = Pattern(found[-1].image_pattern)
        taken += [name for name in remaining if pattern.key(name)]
        remaining = [name for name in remaining if pattern.key(name) is None]
        other = propose_patterns(remaining, fitting, other_images=taken)
        if other is None or other.matched < proposal.matched:
            break
        found.append(other)
    return found[1:]


def _likely_pairs(images: Sequence[str], labels: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Yields some images, each with a label whose name shares the most, and the rarest, words."""
    words = {label: set(_words(label)) for label in labels[:2000]}
    frequency = Counter(word for found in words.values() for word in found)
    labels_of = defaultdict[str, list[str]](list)
    for label, found in words.items():
        for word in found:
            labels_of[word].append(label)
    step = max(min(len(images), 2000) // SAMPLES, 1)
    for image in images[:2000:step]:
        scores = Counter[str]()
        for word in set(_words(image)):
            for label in labels_of.get(word, []):
                scores[label] += 1_000_000 // frequency[word]
        if scores:
            yield image, max(scores, key=lambda label: (scores[label], -len(label), label))


def _words(name: str) -> list[str]:
    return [word for word in _tokens(split_suffix(name)[0]) if word.isalnum()]


def _tokens(name: str) -> list[str]:
    return re.findall(r"\d+|[^\W\d_]+|[\W_]", name)


def _generalize(image: str, label: str) -> tuple[str, str] | None:
    """Returns two names with stars in place of what they share, None if they share nothing."""
    first, second = _tokens(image), _tokens(label)
    patterns, ends = ["", ""], (0, 0)
    for a, b, size in SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        shared = first[a : a + size]
        start, end = 0, size
        # Separators beside a difference are part of the pattern, not of the star.
        while start < end and not shared[start].isalnum() and (a + start > 0 or b + start > 0):
            start += 1
        while end > start and not shared[end - 1].isalnum():
            end -= 1
        if start == end:
            continue
        for side, (tokens, place) in enumerate(((first, a), (second, b))):
            patterns[side] += "".join(tokens[ends[side] : place + start]) + "*"
        ends = a + end, b + end
    patterns = [
        text + "".join(tokens[e:]) for text, tokens, e in zip(patterns, (first, second), ends, strict=True)
    ]
    return (patterns[0], patterns[1]) if "*" in patterns[0] and "**" not in " ".join(patterns) else None


def _without_folders(pattern: str) -> str:
    """Replaces the folders before the first star by any folders."""
    folders, slash, _ = pattern[: pattern.index("*")].rpartition("/")
    return f"**/{pattern[len(folders) + 1 :]}" if slash else pattern


def _common_extension(names: Iterable[str]) -> str:
    """Returns the extension that all names have, in lower case, or nothing."""
    extensions = {split_suffix(name)[1].lower() for name in names}
    return extensions.pop() if len(extensions) == 1 else ""


def count_matches(images: Iterable[str], labels: Iterable[str], first: Pattern, second: Pattern) -> int:
    """Counts the images with exactly one label; 0 if two images or labels are the same for the patterns."""
    keys = [
        [key for name in names if (key := p.key(name))] for names, p in ((images, first), (labels, second))
    ]
    if any(len(set(of)) < len(of) for of in keys):
        return 0
    return len(set(keys[0]) & set(keys[1]))


def find_label_maps(names: Sequence[str]) -> dict[str, str]:
    """Returns the files that seem to be label maps of others among them, each with its image.

    They have a word of `LABEL_WORDS` in their relative path, and are otherwise named like another file.

    Example:
        >>> find_label_maps(["images/1.jpg", "images/2.jpg", "labels/1.png", "labels/2.png"])
        {'labels/1.png': 'images/1.jpg', 'labels/2.png': 'images/2.jpg'}
    """
    possible = label_names(names)
    maps = set(possible)
    images = [name for name in names if name not in maps] if maps else []
    if not images or (proposal := propose_patterns(sorted(maps), images)) is None:
        return {}
    first, second = Pattern(proposal.image_pattern), Pattern(proposal.label_pattern)
    image_of = {key: name for name in images if (key := second.key(name))}
    return {name: image_of[key] for name in possible if (key := first.key(name)) in image_of}


def label_names(names: Sequence[str]) -> list[str]:
    """Returns the names with a word of `LABEL_WORDS` in their relative path."""
    possible = [name for name in names if LABEL_HINT.search(name)]  # fast, for long lists
    return [name for name in possible if not LABEL_WORDS.isdisjoint(word.lower() for word in _words(name))]


def propose_for_one_folder(names: Sequence[str]) -> list[PatternProposal]:
    """Returns the patterns of images and each kind of labels that are in one folder, as far as recognized.

    Labels are recognized by words of `LABEL_WORDS`, as files named like others with an ending, such as `_L`,
    or as lossless files beside JPEGs of the same names.

    Example:
        >>> propose_for_one_folder(["1.jpg", "1.png", "2.jpg", "2.png"])
        [PatternProposal(image_pattern='*.jpg', label_pattern='*.png', matched=2)]
    """
    lossless = [name for name in names if not split_suffix(name)[1].lower().startswith(".j")]
    for labels in (label_names(names), _names_with_endings(names), lossless):
        images = sorted({*names} - {*labels})
        kinds = propose_all_patterns(images, labels, one_folder=True)
        found = [
            each for kind in kinds if (each := _within_one_folder(kind, images, labels, names)) is not None
        ]
        if found:
            return found
    return []


def _names_with_endings(names: Sequence[str]) -> list[str]:
    """Returns the names that continue another one, such as `1_L.png` beside `1.png`."""
    stems = {name: split_suffix(name)[0] for name in names}
    known = {*stems.values()}
    return [
        name
        for name, stem in stems.items()
        if any(not stem[i].isalnum() and stem[:i] in known for i in range(1, len(stem)))
    ]


def _within_one_folder(
    proposal: PatternProposal, images: Sequence[str], labels: Sequence[str], names: Sequence[str]
) -> PatternProposal | None:
    """Returns a proposal whose patterns match no name of the folder both, None if there is none."""
    first, second, _ = proposal
    if second == "*":
        extensions = _common_extension(images), _common_extension(labels)
        if not all(extensions) or extensions[0] == extensions[1]:
            return None
        first, second = (f"*{extension}" for extension in extensions)
    of_labels = [name for name in names if Pattern(second).key(name)]
    of_images = [name for name in names if Pattern(first).key(name)]
    if first == "*":  # then all that are no labels are images
        of_images = sorted({*of_images} - {*of_labels})
    if not {*of_images}.isdisjoint(of_labels):
        return None
    matched = count_matches(of_images, of_labels, Pattern(first), Pattern(second))
    return PatternProposal(first, second, matched) if matched else None


def pattern_of_some(chosen: Sequence[str], others: Sequence[str]) -> str | None:
    """Returns a pattern that matches all chosen names and no others, None if there is none.

    Example:
        >>> pattern_of_some(["images/1.png", "images/2.png"], ["masks/1.png"])
        'images/*'
    """
    first = PurePosixPath(chosen[0])
    stem, extension = split_suffix(first.name)
    folders = first.parts[:-1]
    proposals = [f"*{extension}"]
    for depth, folder in enumerate(folders):
        proposals.append(f"{'*/' * bool(depth)}{folder}/*")
    ends = [stem[place:] for place in range(1, len(stem)) if not stem[place].isalnum()]
    proposals += [f"*{end}{suffix}" for end in reversed(ends) for suffix in ("", extension)]
    for text in proposals:
        pattern = Pattern(text)
        if all(pattern.key(name) for name in chosen) and not any(pattern.key(name) for name in others):
            return text
    return None
