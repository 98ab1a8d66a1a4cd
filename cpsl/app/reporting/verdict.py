"""The verdict of a report: what adaptation brought, what it cost, how far to trust it, what to do next."""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from shlex import quote
from typing import NamedTuple

from cpsl.app.comparable import SHORTEST
from cpsl.app.reporting.compare import normalized
from cpsl.app.reporting.content import Kind, Report
from cpsl.app.reporting.trust import RARE, trust, trust_in_brief
from cpsl.app.titles import title_of
from cpsl.app.words import difference, duration, listing, number, plural, share, size

FEW_IMAGES = 10
"""With fewer images nothing can be said about a data set."""

NOTABLE = 1.0
"""A class gained or lost if its IoU changed by at least this many points."""

BADGES: dict[Kind, str] = {
    "better": "Adaptation helped",
    "worse": "Adaptation did harm",
    "unclear": "No clear change",
    "untested": "Change not tested",
    "rejected": "Adaptation was rejected",
    "short": "Too short to judge",
    "unlabeled": "Accuracy unknown",
    "single": "One network, no comparison",
    "unfinished": "Not finished",
}


class Step(NamedTuple):
    """What to do next, and the command for it if there is one."""

    text: str
    command: str = ""


class Change(NamedTuple):
    """The IoU of a class before and after, in percent."""

    class_index: int
    name: str
    before: float | None
    after: float | None
    clear: bool  # whether it is more than the choice of images explains

    @property
    def gain(self) -> float | None:
        """Difference in points, None if one of both is unknown."""
        return difference(self.before, self.after)


@dataclass(frozen=True)
class Verdict:
    """Sentences for somebody who decides.

    Attributes:
        kind: Of the outcome.
        sentences: What happened.
        trust: How far to trust it.
        trust_in_brief: The same in a sentence.
        steps: What to do next.
        problems: What is wrong, such as a collapse.
    """

    kind: Kind
    sentences: list[str] = field(default_factory=list)
    trust: list[str] = field(default_factory=list)
    trust_in_brief: str = ""
    steps: list[Step] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def badge(self) -> str:
        """The outcome in three words."""
        return BADGES[self.kind]


def class_changes(report: Report) -> list[Change]:
    """Returns the change of each class between the compared stages, the largest gain first."""
    before, after = (report.metrics[stage]["iou"] for stage in report.ends)
    intervals = report.comparison.class_gains if report.comparison else [None] * len(report.classes)
    changes = [
        Change(k, name, before.get(name), after.get(name), bool(interval and interval.clear))
        for k, (name, interval) in enumerate(zip(report.classes, intervals, strict=True))
    ]
    return sorted(changes, key=lambda change: (change.gain is None, -(change.gain or 0.0)))


def judge(report: Report) -> Verdict:
    """Judges a run from its results."""
    shortness = _shortness(report)
    kind = _kind(report, bool(shortness))
    return Verdict(
        kind,
        [*_unfinished(report), *shortness, *_outcome(report, kind), *_cost(report)],
        trust(report, kind),
        trust_in_brief(report, kind),
        _steps(report, kind),
        _problems(report),
    )


def _kind(report: Report, short: bool) -> Kind:
    first, last = report.ends
    before, after = report.mious
    if not report.finished:
        return "unfinished"
    if short:
        return "short"
    if first == last:
        return "single"
    if report.chosen == first:
        return "rejected"
    if before is None or after is None:
        return "unlabeled"
    if report.comparison is None or not report.comparison.labeled:
        return "untested"
    gain = report.comparison.gain
    if gain is None or not gain.clear:
        return "unclear"
    return "better" if gain.low > 0 else "worse"


def _unfinished(report: Report) -> list[str]:
    if report.finished:
        return []
    missing = listing(f"“{title_of(stage)}”" for stage in report.missing)
    which = f" {missing} {'is' if len(report.missing) == 1 else 'are'} missing." if missing else ""
    return [f"This run is not finished.{which} The figures are those of the networks so far."]


def _shortness(report: Report) -> list[str]:
    """Returns why the run means nothing, in sentences."""
    found = []
    steps = {stage: report.iterations[stage] for stage in report.ends if stage in report.iterations}
    if short := {stage: n for stage, n in steps.items() if n < SHORTEST}:
        trained = listing(f"“{title_of(stage)}” {plural(n, 'step')}" for stage, n in short.items())
        found.append(
            f"This run is too short to mean anything: {trained}. A network learns little in fewer than "
            f"{SHORTEST} steps; the figures below show only that everything runs."
        )
    for data in report.data_sets:
        if data.images < FEW_IMAGES and not (data.name.startswith("source ") or data.images == 0):
            what = "target images to judge by" if data.name == "evaluation" else f"images in the {data.name}"
            found.append(f"There are only {data.images} {what}; fewer than {FEW_IMAGES} say nothing.")
    return found


def _outcome(report: Report, kind: Kind) -> list[str]:
    first, last = report.ends
    before, after = report.mious
    if first == last:
        sentence = f"The run has one network, “{title_of(first)}”"
        return [sentence + (f", with a mean IoU of {number(after)}." if after is not None else ".")]
    if before is None or after is None:
        return _outcome_without_labels(report)
    comparison = report.comparison
    count = comparison.labeled if comparison else 0
    labeled = f" on {plural(count, 'labeled evaluation image')}" if count else ""
    gain = difference(before, after) or 0.0
    rose = "rose" if gain > 0 else "fell"
    rose, by = (rose, f"by {number(abs(gain))} points") if gain else ("went", "unchanged")
    sentence = (
        f"The mean IoU{labeled} {rose} from {number(before)} (“{title_of(first)}”) to {number(after)} "
        f"(“{title_of(last)}”), {by}."
    )
    sentences = [sentence] if kind == "short" else [sentence, *_gains_and_losses(report)]
    if kind == "rejected":
        better = " although its mean IoU is lower" if after > before else ""
        sentences.append(f"The run ends with “{title_of(first)}”{better}: {report.reason}.")
    return sentences


def _gains_and_losses(report: Report) -> list[str]:
    changes = [change for change in class_changes(report) if abs(change.gain or 0) >= NOTABLE]
    gained = [c for c in changes if c.clear and (c.gain or 0) > 0]
    lost = [c for c in reversed(changes) if c.clear and (c.gain or 0) < 0]
    unclear = [c for c in changes if not c.clear]
    if not changes:
        return [f"No class changed by {NOTABLE:.0f} point or more."]

    def name(some: list[Change]) -> str:
        listed = listing(f"{c.name} ({number(c.gain, signed=True)})" for c in some[:3])
        return ("most of all " if len(some) > 3 else "") + listed

    parts = [
        f"{plural(len(some), 'class')} {what} at least a point: {name(some)}"
        for some, what in ((gained, "gained"), (lost, "lost"))
        if some
    ] or ["no class clearly gained or lost a point"]
    if gained and not lost:
        parts.append("no class clearly lost a point")
    if unclear:
        parts.append(
            f"{plural(len(unclear), 'class')} changed by a point or more, which another choice of images "
            f"could explain: {name(sorted(unclear, key=lambda c: -abs(c.gain or 0)))}"
        )
    text = "; ".join(parts)
    return [text[0].upper() + text[1:] + "."]


def _outcome_without_labels(report: Report) -> list[str]:
    first, last = report.ends
    sentences = ["The target images have no labels, so nobody can say from this run how accurate it is."]
    if report.comparison and report.comparison.images:
        images = report.comparison.images
        changed = sum(image.changed for image in images) / len(images)
        sentences.append(
            f"“{title_of(last)}” predicts another class than “{title_of(first)}” for "
            f"{share(changed)} of the pixels.{_changed_shares(report)}"
        )
    old, new = ((report.metrics[stage].get("scores") or {}).get("flip_miou") for stage in (first, last))
    if old is not None and new is not None:
        more = "more" if new > old else "less"
        sentences.append(
            f"Its predictions for an image and for the mirrored image agree {more} than before: "
            f"{number(old, 3)} before, {number(new, 3)} after, where 1 is full agreement."
        )
    if report.chosen == first:
        sentences.append(f"The run therefore ends with “{title_of(first)}”: {report.reason}.")
    return sentences


def _changed_shares(report: Report, most: int = 3, least: float = 0.02) -> str:
    """Returns the `most` classes whose predictions grew or shrank by at least `least` of the pixels."""
    before, after = (report.metrics[stage].get("class_frequency") or [] for stage in report.ends)
    pairs = zip(report.classes, before, after, strict=False)  # nothing if one is unknown
    changes = sorted(pairs, key=lambda c: -abs(c[2] - c[1]))
    described = [
        f"{name} {'grew' if new > old else 'shrank'} from {share(old)} to {share(new)}"
        for name, old, new in changes[:most]
        if abs(new - old) >= least
    ]
    return f" Most of all, {listing(described)} of the pixels." if described else ""


def _cost(report: Report) -> list[str]:
    stages = list(report.metrics)
    seconds = {stage: report.metrics[stage].get("seconds") or 0 for stage in stages}
    if not any(seconds.values()):
        return []
    base, rest = seconds[stages[0]], sum(seconds[stage] for stage in stages[1:])
    memory = size(max(report.metrics[stage].get("peak_memory") or 0 for stage in stages))
    memory = f", with at most {memory} of memory" if memory[0].isdigit() else ""
    if base == 0:
        read = f"“{title_of(stages[0])}” was read from a file"
        return [f"The adaptation took {duration(rest)}{memory}; {read}."]
    parts = f": {duration(base)} for “{title_of(stages[0])}”, {duration(rest)} for the adaptation"
    return [f"Training took {duration(base + rest)}{parts if len(stages) > 1 else ''}{memory}."]


def _problems(report: Report) -> list[str]:
    found = []
    for stage, values in report.metrics.items():
        if reasons := values.get("collapses"):
            is_model = report.finished and stage == report.chosen
            of_model = " This is the network of model.pt." if is_model else ""
            found.append(f"“{title_of(stage)}” collapsed: {'; '.join(reasons)}.{of_model}")
        if (values.get("scores") or {}).get("non_finite"):
            found.append(f"“{title_of(stage)}” predicts numbers that are not finite: its training diverged.")
    return found


def _steps(report: Report, kind: Kind) -> list[Step]:
    _, after = report.mious
    use = Step("Use the network:", _prediction(report))
    if kind == "unfinished":
        return [
            Step("Finish the run; what was computed is kept:", _continuation(report)),
            Step(f"Use the network of “{title_of(report.chosen)}” until then:", _prediction(report)),
        ]
    if kind == "short":
        return [
            Step("Train longer, on more images, before you judge; the recipe “cpu” has 1,000 steps a stage.")
        ]
    found = [] if kind in ("worse", "rejected") else [use]
    first = report.ends[0]
    if kind == "worse":
        found.append(
            Step(f"Use the network of “{title_of(first)}” instead of model.pt:", _prediction(report, first))
        )
    if kind == "rejected":
        found += _steps_after_rejection(report)
    if kind == "unclear":
        found.append(Step("Train longer, or evaluate on more labeled images, until the change is clear."))
    if after is None:
        found.append(
            Step(
                "Label about twenty target images and name them in [evaluation]: the report then has figures."
            )
        )
    elif kind != "rejected":
        found += map(Step, _advice_on_classes(report))
    if kind in ("better", "unclear", "untested", "worse"):
        found.append(_repetition(report))
    return found


def _prediction(report: Report, stage: str = "") -> str:
    """Returns the command that predicts with the network of a stage, or with that of the run."""
    weights = str(PurePosixPath(report.model).parent / stage / "model.pt") if stage else report.weights
    return f"cpsl predict --weights {quote(weights)} --input IMAGES --output RESULTS"


def _continuation(report: Report) -> str:
    """Returns the command that resumes the run, whose folder may have been moved."""
    run = PurePosixPath(report.model).parent
    return f"cpsl adapt --config {quote(str(run / 'config.toml'))} --output {quote(str(run))}"


def _repetition(report: Report) -> Step:
    run, seed = PurePosixPath(report.model).parent, report.seed + 1
    config, output = run / "config.toml", f"{run}_seed_{seed}" if run.name else f"seed_{seed}"
    return Step(
        "Repeat with other seeds before you rely on a difference of a point or two:",
        f"cpsl adapt --config {quote(str(config))} --seed {seed} --output {quote(output)}",
    )


def _steps_after_rejection(report: Report) -> list[Step]:
    first, last = report.ends
    found = [
        Step(
            f"model.pt is the network of “{title_of(first)}”. Look at the pictures for what went wrong; "
            "check that both domains have the same classes, labeled in the same way."
        )
    ]
    if report.comparison and report.comparison.gain and report.comparison.gain.low > 0:
        found.append(
            Step(
                f"By the labels “{title_of(last)}” is better. If what it lost does not matter to you, use "
                "its network instead:",
                _prediction(report, last),
            )
        )
    return found


def _advice_on_classes(report: Report) -> list[str]:
    """Returns what the classes with the lowest IoU, and those that lost, are taken for."""
    after = report.metrics[report.ends[1]]["iou"]
    weak = sorted((iou, name) for name, iou in after.items() if iou is not None and iou < 20)[:3]
    advice = []
    if weak:
        text = f"Weakest classes: {listing(f'{name} ({number(iou)})' for iou, name in weak)}."
        advice.append(text + (_rarity(report, [n for _, n in weak]) or _main_error(report, weak[0][1])))
    lost = [
        c for c in class_changes(report) if c.clear and (c.gain or 0) <= -NOTABLE and (c.after or 0) >= 20
    ]
    advice += [text for change in reversed(lost[-2:]) if (text := _main_loss(report, change))]
    return advice


def _rarity(report: Report, names: list[str]) -> str:
    most = [max(shares) for shares in zip(*report.source_labels.values(), strict=True)]
    rare = [n for n, share_of_source in zip(report.classes, most, strict=False) if share_of_source < RARE]
    if not (rare := [name for name in names if name in rare]):
        return ""
    return f" The source has few pixels of {listing(rare)}: add labeled images with them."


def _main_error(report: Report, name: str) -> str:
    """Returns what most of the wrong predictions of a class are, or most of its missed pixels."""
    if report.comparison is None or not report.comparison.labeled:
        return ""
    matrix, k = report.comparison.confusion[1], report.classes.index(name)
    labeled, predicted = int(matrix[k].sum()), int(matrix[:, k].sum())
    others = matrix.clone()
    others[k, k] = 0
    if predicted > 2 * labeled:
        source = int(others[:, k].argmax())
        times = (
            f"{predicted / labeled:.1f} times as often as it is labeled" if labeled else "and nowhere labeled"
        )
        wrong = share(float(others[source, k]) / predicted)
        return (
            f" {name} is predicted {times}; {wrong} of these pixels are {report.classes[source]}. Compare "
            "how source and target label both."
        )
    other = int(others[k].argmax())
    missed = float(others[k, other]) / max(labeled, 1)
    return f" {share(missed)} of {name} is taken for {report.classes[other]}." if missed else ""


def _main_loss(report: Report, change: Change) -> str:
    """Returns which confusion of a class grew the most, "" if none did."""
    if report.comparison is None:
        return ""
    before, after = (normalized(matrix)[change.class_index] for matrix in report.comparison.confusion)
    grown = after - before
    grown[change.class_index] = 0
    other = int(grown.argmax())
    if grown[other] <= 0:
        return ""
    return (
        f"{change.name} lost {number(abs(change.gain or 0))} points: {share(float(after[other]))} of it is "
        f"taken for {report.classes[other]}, {share(float(before[other]))} before."
    )
