"""The verdict of a report: what adaptation brought, what it cost, how far to trust it, what to do next."""

from dataclasses import dataclass, field
from typing import Any

from cpsl.app.comparable import FEW_IMAGES, SHORTEST
from cpsl.app.reporting.changes import NOTABLE, Change, class_changes
from cpsl.app.reporting.content import Kind, Report
from cpsl.app.reporting.steps import Step, steps_after
from cpsl.app.reporting.trust import few_steps, trust, trust_in_brief
from cpsl.app.selection import SAME_SCORE, SCORE, SCORE_IN_WORDS, SECOND_SCORE
from cpsl.app.titles import title_of
from cpsl.app.unpredicted import describe_unpredicted
from cpsl.app.words import difference, duration, listing, number, plural, share, size
from cpsl.collapse import PRESENT

BADGES: dict[Kind, str] = {
    "better": "Adaptation helped",
    "worse": "Adaptation did harm",
    "small_gain": "Small gain",
    "small_loss": "Small loss",
    "trial_gain": "Gain in a short run",
    "trial_loss": "Loss in a short run",
    "unclear": "No clear change",
    "untested": "Change not tested",
    "rejected": "Adaptation was rejected",
    "overlooked": "Adaptation helped, but was not chosen",
    "short": "Too short to judge",
    "unlabeled": "Accuracy unknown",
    "open": "Open: the scores prefer the network before adaptation",
    "single": "One network, no comparison",
    "unfinished": "Not finished",
}


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
        """The outcome in a few words."""
        return BADGES[self.kind]


def judge(report: Report) -> Verdict:
    """Judges a run from its results."""
    shortness = _shortness(report)
    kind = _kind(report, bool(shortness))
    return Verdict(
        kind,
        [*_unfinished(report), *shortness, *_outcome(report, kind), *_unpredicted(report), *_cost(report)],
        trust(report, kind),
        trust_in_brief(report, kind),
        steps_after(report, kind),
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
    scores = report.metrics[last].get("scores") or {}
    if not report.kept and (report.metrics[last].get("collapses") or scores.get("non_finite")):
        return "rejected"
    if before is None or after is None:
        return "unlabeled" if report.kept else "open"
    if report.comparison is None or not report.comparison.labeled:
        return "untested"
    gain = report.comparison.gain
    if gain is None or not gain.clear:
        return "unclear"
    rose = gain.low > 0
    if not (report.kept or rose):
        return "rejected"
    if few_steps(report):
        return "trial_gain" if rose else "trial_loss"
    if abs(difference(before, after) or 0) < NOTABLE:
        return "small_gain" if rose else "small_loss"
    if not report.kept:
        return "overlooked"
    return "better" if rose else "worse"


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
    for data in report.small_data_sets:
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
    labeled = f" on {plural(count, f'labeled {report.evaluated}')}" if count else ""
    gain = difference(before, after) or 0.0
    rose = "rose" if gain > 0 else "fell"
    rose, by = (rose, f"by {number(abs(gain))} points") if gain else ("went", "unchanged")
    sentence = (
        f"The mean IoU{labeled} {rose} from {number(before)} (“{title_of(first)}”) to {number(after)} "
        f"(“{title_of(last)}”), {by}."
    )
    sentences = [sentence] if kind == "short" else [sentence, *_gains_and_losses(report)]
    if report.finished and not report.kept and kind != "short":
        better = " although its mean IoU is lower" if after > before else ""
        sentences.append(f"The run ends with “{title_of(first)}”{better}: {_rejection(report)}")
    if kind in ("overlooked", "small_gain", "trial_gain") and not report.kept:
        sentences.append(f"The network of “{title_of(last)}” is the file {report.weights_of(last)}.")
    return sentences + _later_stages(report)


def _later_stages(report: Report) -> list[str]:
    """Returns why the run does not end with its last stage, if it ends with one that adapts."""
    if not report.finished or not report.kept or report.chosen == [*report.metrics][-1]:
        return []
    return [f"The run ends with “{title_of(report.chosen)}”, not with a later stage: {report.reason}."]


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
    sentences = [f"The {report.evaluated}s have no labels: nobody can say from this run how accurate it is."]
    if report.comparison and report.comparison.images:
        images = report.comparison.images
        changed = sum(image.changed for image in images) / len(images)
        sentences.append(
            f"“{title_of(last)}” predicts another class than “{title_of(first)}” for "
            f"{share(changed)} of the pixels.{_changed_shares(report)}"
        )
    sentences += _score_changes(report)
    if not report.kept:
        sentences.append(f"The run ends with “{title_of(first)}”: {_rejection(report)}")
    return sentences + _later_stages(report)


def _score_changes(report: Report) -> list[str]:
    """Returns how the score that chooses changed, and the agreement with mirrored images."""
    first, last = report.ends
    scores = [report.metrics[stage].get("scores") or {} for stage in (first, last)]
    found = []
    said = not report.kept or _later_stages(report)  # by the reason for the choice
    if (ends := _before_and_after(scores, SCORE)) and not said:
        word = _compared(*ends, "about as high as", "higher than", "lower than")
        figures = f"{number(ends[0], 3)} before, {number(ends[1], 3)} after"
        found.append(f"Its {SCORE_IN_WORDS}, the score that chooses, is {word} before: {figures}.")
    if ends := _before_and_after(scores, SECOND_SCORE):
        agree = _compared(*ends, "about as much as", "more than", "less than")
        if not report.kept and ends[1] < ends[0]:
            agree = "less than"  # however little: it may be why the network is rejected
        mirrored = report.metrics[last].get("mirrored")
        on = f" on {plural(mirrored, 'image')}" if mirrored else ""
        found.append(
            f"Its predictions for an image and for the mirrored image agree {agree} before: "
            f"{number(ends[0], 3)} before, {number(ends[1], 3)} after{on}, where 1 is full agreement."
        )
        if ends[1] < ends[0] and (new := _newly_predicted(report)):
            found.append(f"Newly predicted classes ({listing(new)}) can lower this mean, right or wrong.")
    return found


def _newly_predicted(report: Report) -> list[str]:
    """Returns the classes that the first network hardly ever predicts, and the last one more often."""
    shares = (report.metrics[stage].get("class_frequency") or [] for stage in report.ends)
    pairs = zip(report.classes, *shares, strict=False)  # nothing if one is unknown
    return [name for name, before, after in pairs if before < PRESENT and after > 2 * before]


def _before_and_after(scores: list[dict[str, Any]], name: str) -> tuple[float, float] | None:
    before, after = (of_stage.get(name) for of_stage in scores)
    return None if before is None or after is None else (float(before), float(after))


def _compared(before: float, after: float, same: str, higher: str, lower: str) -> str:
    return same if abs(after - before) <= SAME_SCORE else higher if after > before else lower


def _rejection(report: Report) -> str:
    """Returns why the last stage was rejected; `_problems` has the figures of its collapses."""
    last = report.ends[1]
    if not (collapses := report.metrics[last].get("collapses")):
        return f"{report.reason}."
    what = listing(dict.fromkeys(reason.partition(": ")[0] for reason in collapses))
    shares = _changed_shares(report) if report.mious[1] is not None else ""  # else the sentence before has it
    return f"“{title_of(last)}” collapsed, since {what}.{shares}"


def _unpredicted(report: Report) -> list[str]:
    """Returns which classes of the source are not predicted, if no IoU tells it."""
    _, after = report.mious
    chosen = report.metrics[report.chosen]
    sentence = describe_unpredicted(chosen, report.source_labels, report.classes)
    if after is not None or not sentence:
        return []
    return [f"{sentence} Where the target images show such a class, the network misses it."]


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
    parts = f" for “{title_of(stages[0])}”, {duration(rest)} for the adaptation" if len(stages) > 1 else ""
    return [f"Training took {duration(base)}{parts}{memory}."]


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
