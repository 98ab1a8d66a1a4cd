"""What `cpsl check` says about data: a summary, one entry for each kind of problem, warnings."""

import re
import textwrap
from collections import Counter
from collections.abc import Mapping

import torch

from cpsl.app.domain import Domain, Ids
from cpsl.app.words import plural
from cpsl.data import LabelSpace
from cpsl.data.check import DatasetCheck, Finding
from cpsl.data.propose import MAX_ID

WIDTH = 80
"""Columns of the text; names of files and lines to be copied are not broken."""

SHOWN_VALUES = 40
"""Unknown values of labels that are listed; files that are no label maps have hundreds."""

SHOWN_KINDS = 10
"""Kinds of problems of one domain that are shown."""

MOSTLY = 0.5
"""Share of ignored pixels from which on a warning is given."""

NUMBER = re.compile(r"b'[^']*'|[-+]?\d+(\.\d+)?(e[-+]?\d+)?|[-+]?\b(nan|inf)\b")
"""What differs between messages of one kind: numbers as Python writes them, and bytes."""

Kinds = dict[tuple[str, str], list[Finding]]


def summary(name: str, result: DatasetCheck) -> str:
    """Returns the numbers of images, of their sizes, of labels and of problems.

    Example:
        >>> import torch
        >>> result = DatasetCheck(2, 2, {(480, 640): 2}, torch.tensor([3, 1]), [], [], 1, examples=[0])
        >>> summary("source", result)
        'source: 2 images (2 of 640x480), 2 with labels'
    """
    sizes = sorted(result.sizes.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{count} of {width}x{height}" for (height, width), count in sizes[:4]]
    if others := len(sizes[4:]):
        listed.append(f"{sum(count for _, count in sizes[4:])} of {others} other sizes")
    problems = f", {plural(len(result.findings), 'problem')}" if result.findings else ""
    sizes_or_none = ", ".join(listed) or "none can be read"
    return fill(f"{name}: {result.images} images ({sizes_or_none}), {result.labeled} with labels{problems}")


def class_shares(results: Mapping[str, DatasetCheck], classes: LabelSpace) -> str:
    """Returns a table of the class shares of all domains with labels, side by side; "" if there are none.

    Example:
        >>> import torch
        >>> empty = DatasetCheck(2, 2, {}, torch.tensor([0, 0]), [], [], ignored=0, examples=[])
        >>> source = empty._replace(counts=torch.tensor([3, 1]), ignored=1)
        >>> evaluation = empty._replace(counts=torch.tensor([1, 1]))
        >>> results = {"source": source, "target": empty, "evaluation": evaluation}
        >>> print(class_shares(results, LabelSpace(("road", "car"), ((0, 0, 0), (9, 9, 9)))))
        % of labeled pixels   source  evaluation
          road                75.000      50.000
          car                 25.000      50.000
          (ignored of all)    20.000       0.000
    """
    shown = {name: each for name, each in results.items() if int(each.counts.sum()) + each.ignored}
    if not shown:
        return ""
    rows = {
        f"  {label}": [100 * int(each.counts[k]) / max(int(each.counts.sum()), 1) for each in shown.values()]
        for k, label in enumerate(classes.names)
    }
    rows["  (ignored of all)"] = [100 * _ignored_share(each) for each in shown.values()]
    title = "% of labeled pixels"
    first = max(map(len, (title, *rows)))
    widths = [max(len(name), 7) + 2 for name in shown]
    lines = [f"{title:{first}}" + "".join(f"{name:>{w}}" for name, w in zip(shown, widths, strict=True))]
    for label, shares in rows.items():
        cells = "".join(f"{share:{w}.3f}" for share, w in zip(shares, widths, strict=True))
        lines.append(f"{label:{first}}{cells}")
    return "\n".join(lines)


def kinds_of(findings: list[Finding]) -> Kinds:
    """Groups problems by kind, the most frequent first: reasons that differ in numbers alone are one kind."""
    kinds: Kinds = {}
    for finding in findings:
        reason = "" if finding.kind == "values" else NUMBER.sub("#", finding.reason)
        kinds.setdefault((finding.kind, reason), []).append(finding)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def describe_kinds(
    name: str, domain: Domain, result: DatasetCheck, classes: LabelSpace, *, proposed: bool = False
) -> list[str]:
    """Returns one text for each kind of problem: number, values, two example files, and the fix.

    `proposed` says that lines of settings were proposed for the labels, which are the fix then.
    """
    kinds = list(kinds_of(result.findings).items())
    texts = [
        _describe_kind(name, domain, kind, findings, result, classes, proposed)
        for (kind, _), findings in kinds[:SHOWN_KINDS]
    ]
    if rest := kinds[SHOWN_KINDS:]:
        number = sum(len(findings) for _, findings in rest)
        texts.append(f"{name}: {number} problems of {len(rest)} other kinds")
    return texts


def _describe_kind(
    name: str,
    domain: Domain,
    kind: str,
    findings: list[Finding],
    result: DatasetCheck,
    classes: LabelSpace,
    proposed: bool,
) -> str:
    reason, images, labels = findings[0].reason, f"of {result.images} images", f"of {result.labeled} labels"
    values = _union(findings)
    problem, fix = {
        "image": (f"{images} cannot be used: {reason}", "replace or remove these files"),
        "label": (f"{labels} cannot be used: {reason}", "correct these files"),
        "orientation": (f"{labels} may be rotated or not: {reason}", "set label_orientation"),
        "values": (f"{labels} have unknown values, {len(values)} in all (shares of label pixels):", ""),
        "size": (f"{labels} differ from their image: {reason}", "correct these labels, or the path `labels`"),
        "unlabeled": (f"{images} have no label", "add the labels, or move these images away"),
        "other": (f"{images} cannot be used: {reason}", "correct these files"),
    }[kind]
    lines = [fill(f"{name}: {len(findings)} {problem}")]
    if kind == "values":
        lines.append(fill(_list_values(values, result), "  "))
    lines += [f"  {finding.file}" for finding in findings[:2]]
    if proposed and kind in ("label", "values", "orientation"):
        fixes = ["  Fix: copy the lines proposed above"]
    elif ": set " in reason:  # it names the setting
        fixes = []
    else:
        fixes = [f"  Fix: {fix}"] if fix else _fix_values(name, domain, list(values), classes)
    return "\n".join(lines + fixes)


def _union(findings: list[Finding]) -> dict[int | str, int]:
    """Returns the pixels of each unknown value over all labels, numbers in ascending order."""
    total = Counter[int | str]()
    for finding in findings:
        total.update(finding.values)
    return dict(sorted(total.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _list_values(values: Mapping[int | str, int], result: DatasetCheck) -> str:
    faulty = sum(finding.pixels for finding in result.findings)
    pixels = max(int(result.counts.sum()) + result.ignored + faulty, 1)
    shown = values
    if len(values) > SHOWN_VALUES:
        most = sorted(values, key=lambda value: -values[value])[:SHOWN_VALUES]
        shown = {value: values[value] for value in values if value in set(most)}
    # Not to be broken between a value and its share.
    text = ", ".join(f"{value}\0({_percent(count / pixels)})" for value, count in shown.items())
    return text + (f" and {len(values) - len(shown)} others" if len(shown) < len(values) else "")


def _fix_values(name: str, domain: Domain, values: list[int | str], classes: LabelSpace) -> list[str]:
    """Returns the line of settings in which a person enters the classes of unknown values."""
    if domain.dataset != "folder":
        return ["  Fix: correct these labels, or the path `root`"]
    if len(values) > SHOWN_VALUES:
        return ["  Fix: these are probably no label maps; correct the path `labels`"]
    first = domain.first_id
    entries: dict[int | str, int | str] = dict.fromkeys(range(first), 255)
    entries.update({first + index: index for index in range(len(classes))})
    entries[255] = 255
    if domain.ids:
        entries = dict(domain.ids.items())
    possible = [value for value in values if isinstance(value, str) or 0 <= value <= MAX_ID]
    ignored = f"ignore_unknown = true  # ids are 0...{MAX_ID}: all other numbers are ignored"
    if not possible:
        return [fill(f"Fix: in the table {table(name)}, ignore these numbers:\n{ignored}", "  ")]
    entries |= dict.fromkeys(possible, 255)
    line = ", ".join(f"{_toml(value)} = {_toml(index)}" for value, index in entries.items())
    place = f"in the table {table(name)}" + (" in place of first_id" if first else "")
    text = f"Fix: {place}, replace 255 (ignored) by a class index where a value has a class:"
    lines = [f"ids = {{ {line} }}", *([ignored] if len(possible) < len(values) else [])]
    return [fill("\n".join([text, *lines]), "  ")]


def table(name: str) -> str:
    """Returns the table of a domain in a file of settings.

    Example:
        >>> table("source"), table("source 2")
        ('[source]', '[[source]] number 2')
    """
    head, _, number = name.partition(" ")
    return f"[[{head}]] number {number}" if number else f"[{head}]"


def find_warnings(
    results: Mapping[str, DatasetCheck],
    domains: Mapping[str, Domain],
    classes: LabelSpace,
    complete: bool = True,
) -> list[str]:
    """Returns what is allowed but seldom meant: classes without pixels, masks of 0 and 255, ignored pixels.

    Args:
        results: Results of the domains by name: "source" or "source 1", ..., "target", "evaluation".
        domains: Their settings.
        classes: Label space of the run.
        complete: Whether all labels were counted; some of them cannot tell that a class is missing.
    """
    labeled = {
        name: result for name, result in results.items() if int(result.counts.sum()) and name != "target"
    }
    texts, sources = list[str](), dict[str, DatasetCheck]()
    for name, result in labeled.items():
        if of_masks := _warn_of_masks(name, result, domains[name], classes):
            texts.append(of_masks)
            continue  # what follows from it is not repeated
        if name.startswith("source"):
            sources[name] = result
        if of_offset := _warn_of_offset(name, result, domains[name], classes):
            texts.append(of_offset)
        others = {other: domains[other].ids for other in labeled if domains[other].dataset == "folder"}
        if of_ids := _warn_of_other_ids(name, result, domains[name], others, classes):
            texts.append(of_ids)
        present = [c for c, n in zip(classes.names, result.counts.tolist(), strict=True) if n]
        if len(present) == 1:
            texts.append(
                f"{name}: all labeled pixels have the class {present[0]}. There is nothing to distinguish: "
                "check `classes` and `ids`"
            )
        if (ignored := _ignored_share(result)) > MOSTLY:
            texts.append(f"{name}: {_percent(ignored)} of the label pixels are ignored: check `ids`")
    if sources and complete:
        texts.append(_warn_of_missing_classes(sources, labeled.get("evaluation"), domains, classes))
    return [fill(f"Warning: {text}") for text in texts if text]


def _warn_of_masks(name: str, result: DatasetCheck, domain: Domain, classes: LabelSpace) -> str:
    """Warns of masks of two classes whose objects are stored as 255, which is ignored."""
    if not (_holds_indices(domain) and len(classes) == 2 and result.counts[1] == 0 and result.ignored):
        return ""
    first, second = classes.names
    ignored = _ignored_share(result)
    return (
        f"{name}: every pixel is {first} ({_percent(1 - ignored)}) or 255, which is ignored "
        f"({_percent(ignored)}); {second} never occurs. If 255 means {second}, write in the table "
        f"{table(name)}:\nids = {{ 0 = 0, 255 = 1 }}"
    )


def _holds_indices(domain: Domain) -> bool:
    """Returns whether the labels of a domain are read as class indices, without any setting."""
    return domain.dataset == "folder" and not (domain.ids or domain.first_id)


def _warn_of_offset(name: str, result: DatasetCheck, domain: Domain, classes: LabelSpace) -> str:
    """Warns of labels that probably count the classes from 1, since 0 never occurs."""
    if not _holds_indices(domain) or len(classes) < 2 or result.counts[0] or not result.counts[1]:
        return ""
    first, second = classes.names[:2]
    return (
        f"{name}: the labels begin with 1, read as {second}; 0 ({first}) never occurs. If 1 means "
        f"{first}, write in the table {table(name)}:\nfirst_id = 1"
    )


def _warn_of_other_ids(
    name: str, result: DatasetCheck, domain: Domain, ids_of: Mapping[str, Ids], classes: LabelSpace
) -> str:
    """Warns of class indices that are all in the `ids` of another domain, where they mean other classes."""
    stored = [index for index, pixels in enumerate(result.counts.tolist()) if pixels]
    for other, ids in ids_of.items():
        if not _holds_indices(domain) or not ids.keys() >= {*stored}:
            continue
        if wrong := [i for i in stored if ids[i] not in (i, classes.names[i])]:
            return (
                f"{name}: the labels are read as class indices, since there are no ids; by those of {other}, "
                f"{wrong[0]} would mean {ids[wrong[0]]}, not {classes.names[wrong[0]]}. If both store the "
                f"same values, copy ids from the table {table(other)} to {table(name)}"
            )
    return ""


def _warn_of_missing_classes(
    sources: Mapping[str, DatasetCheck],
    evaluation: DatasetCheck | None,
    domains: Mapping[str, Domain],
    classes: LabelSpace,
) -> str:
    """Warns of classes that no source shows, with their shares in the evaluation.

    If the last one is missing, the labels may count the classes from 1, with 0 for pixels without a class.
    """
    shown = torch.stack([result.counts for result in sources.values()]).sum(dim=0)
    missing = (shown == 0).nonzero().flatten().tolist()
    if not missing:
        return ""
    listed, evaluated = list[str](), 0.0
    for index in missing:
        share = 0.0 if evaluation is None else float(evaluation.counts[index] / evaluation.counts.sum())
        evaluated += share
        listed.append(classes.names[index] + (f" ({_percent(share)} of the evaluation)" if share else ""))
    text = (
        f"No source shows {', '.join(listed)}. A network cannot learn a class that it never sees: correct "
        "`ids`, or remove it from `classes`."
    )
    text += " The IoU of a class of the evaluation would be 0." if evaluated else ""
    offset = [n for n, found in sources.items() if found.counts[:2].all() and _holds_indices(domains[n])]
    if shown[-1] or len(classes) < 3 or not offset:
        return text
    first, tables = classes.names[0], " and ".join(map(table, offset))
    return f"{text} If 1 means {first}, and 0 no class, write in the table {tables}:\nfirst_id = 1"


def _ignored_share(result: DatasetCheck) -> float:
    return result.ignored / max(int(result.counts.sum()) + result.ignored, 1)


def _percent(share: float) -> str:
    """Formats a share; small ones keep a digit other than zero.

    Example:
        >>> _percent(0.5), _percent(0.00012)
        ('50.0 %', '0.01 %')
    """
    digits = 1 if share >= 0.1 else 2
    return f"{100 * share:.{digits}f} %" if share >= 5e-5 or not share else f"{100 * share:.1g} %"


def _toml(value: int | str) -> str:
    return str(value) if isinstance(value, int) else f'"{value}"'


def fill(text: str, indent: str = "") -> str:
    """Breaks the first line of a text, but no words; others are to be copied and are indented only."""
    first, *others = text.replace(" %", "\0%").split("\n")
    lines = textwrap.wrap(
        first,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join([*lines, *(f"    {line}" for line in others)]).replace("\0", " ")
