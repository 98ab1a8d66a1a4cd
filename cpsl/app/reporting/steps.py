"""What to do next after a run, with the commands for it."""

from pathlib import PurePosixPath
from shlex import quote
from typing import NamedTuple

from cpsl.app.options import spell
from cpsl.app.reporting.changes import NOTABLE, Change, class_changes
from cpsl.app.reporting.compare import confusions, normalized
from cpsl.app.reporting.content import Kind, Report
from cpsl.app.reporting.trust import RARE, few_steps
from cpsl.app.titles import title_of
from cpsl.app.words import listing, number, share

LOSSES = ("worse", "small_loss", "trial_loss")
"""Outcomes whose network of the first stage is better by the labels than that of the run."""

MATTERS = 0.01
"""Share of the labeled pixels from which on a confusion is worth advice."""


class Step(NamedTuple):
    """What to do next, and the command for it if there is one."""

    text: str
    command: str = ""


def steps_after(report: Report, kind: Kind) -> list[Step]:
    """Returns what to do next after a run of some outcome."""
    _, after = report.mious
    use = Step("Use the network:", _prediction(report))
    if kind == "unfinished":
        return [
            Step("Finish the run; what was computed is kept:", _continuation(report)),
            Step(f"Use the network of “{title_of(report.chosen)}” until then:", _prediction(report)),
        ]
    if kind == "short":
        small = listing(f"{data.name} ({data.images})" for data in report.small_data_sets)
        more = Step(f"Add images before you judge: {small}. Then begin a new run, with another --output.")
        longer = Step("Train longer before you judge, in a new folder:", f"cpsl {report.longer}")
        return [longer] * bool(report.longer) + [more] * bool(small)
    found = [] if kind in (*LOSSES, "rejected", "overlooked", "open") else [use]
    first, trial = report.ends[0], bool(few_steps(report))
    if trial and report.longer:
        longer = Step("Repeat this trial with more steps, in a new folder:", f"cpsl {report.longer}")
        found = [longer, *(step._replace(text="Use the network until then:") for step in found)]
    if kind in LOSSES:
        found.append(
            Step(f"Use the network of “{title_of(first)}” instead of model.pt:", _prediction(report, first))
        )
    if kind == "rejected":
        found += _steps_after_rejection(report)
    if kind == "overlooked":
        found.append(_use_of_the_better(report))
    if kind == "open":
        found += _comparison(report)
    if kind == "unclear" and not trial:
        found.append(Step("Train longer, or evaluate on more labeled images, until the change is clear."))
    if after is None:
        found.append(
            Step(
                "Label about twenty target images and name them in [evaluation]: the report then has figures."
            )
        )
    elif report.kept or kind == "overlooked":  # else the advice is about a network that is not used
        found += map(Step, _advice_on_classes(report))
    if not trial and kind not in ("rejected", "open", "unlabeled", "single"):
        found.append(_repetition(report))
    return found


def _prediction(report: Report, stage: str = "", output: str = "RESULTS") -> str:
    """Returns the command that predicts with the network of a stage, or with that of the run."""
    weights = report.weights_of(stage) if stage else report.weights
    return f"cpsl predict --weights {quote(weights)} --input IMAGES --output {output}"


def _continuation(report: Report) -> str:
    """Returns the command that resumes the run, whose folder may have been moved."""
    run = PurePosixPath(report.model).parent
    return f"cpsl adapt --config {quote(str(run / 'config.toml'))} --output {quote(str(run))}"


def _repetition(report: Report) -> Step:
    run, seed, first = PurePosixPath(report.model).parent, report.seed + 1, report.ends[0]
    config, output = run / "config.toml", f"{run}_seed_{seed}" if run.name else f"seed_{seed}"
    same = ""
    if first not in report.iterations:  # its file is a setting of the run
        same = (
            f". They start from the same network “{title_of(first)}”, so that their spread is a lower bound; "
            f"{spell(f'init_from.{first}')} None trains it anew"
        )
    return Step(
        f"Repeat with other seeds before you rely on a difference of a point or two{same}:",
        f"cpsl adapt --config {quote(str(config))} --seed {seed} --output {quote(output)}",
    )


def _use_of_the_better(report: Report) -> Step:
    last = report.ends[1]
    lost = [c.name for c in class_changes(report) if c.clear and (c.gain or 0) <= -NOTABLE]
    unless = f", unless the losses of {listing(lost)} matter more to you" if lost else ""
    return Step(
        f"Use the network of “{title_of(last)}”, which is better by the labels than model.pt{unless}:",
        _prediction(report, last),
    )


def _comparison(report: Report) -> list[Step]:
    first, last = report.ends
    return [
        Step(
            "Let a person compare both networks, in the pictures below and on other images. "
            f"That of “{title_of(first)}” is model.pt:",
            _prediction(report, output=f"RESULTS/{first}"),
        ),
        Step(f"That of “{title_of(last)}”:", _prediction(report, last, f"RESULTS/{last}")),
    ]


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
    else:
        found.append(
            Step(
                f"Self-training needs a good start: train “{title_of(first)}” for more steps, or on more "
                "varied source images, and adapt it again."
            )
        )
    return found


def _advice_on_classes(report: Report) -> list[str]:
    """Returns the classes with the lowest IoU, the largest confusion, and what lost classes are taken for."""
    after = report.metrics[report.ends[1]]["iou"]
    weak = sorted((iou, name) for name, iou in after.items() if iou is not None and iou < 20)[:3]
    advice = []
    if weak:
        listed = listing(f"{name} ({number(iou)})" for iou, name in weak)
        advice.append(f"Weakest classes: {listed}. {_remedy(report, [name for _, name in weak])}")
    advice += _largest_confusion(report)
    lost = [c for c in class_changes(report) if c.clear and (c.gain or 0) <= -NOTABLE]
    advice += [text for change in reversed(lost[-2:]) if (text := _main_loss(report, change))]
    return advice


def _remedy(report: Report, weak: list[str]) -> str:
    most = [max(shares) for shares in zip(*report.source_labels.values(), strict=True)]
    rare = [n for n, share_of_source in zip(report.classes, most, strict=False) if share_of_source < RARE]
    if rare := [name for name in weak if name in rare]:
        return f"The source has few pixels of {listing(rare)}: add labeled images with them."
    return "More source images with them may help."


def _largest_confusion(report: Report) -> list[str]:
    """Returns advice on the two classes whose confusion takes most pixels, if these are many."""
    if report.comparison is None:
        return []
    matrix = report.comparison.confusion[1]
    largest = next(iter(confusions(matrix, report.classes, most=1)), None)
    if largest is None or largest[2] < MATTERS:
        return []
    k, j, part = largest
    label, prediction, pixels = report.classes[k], report.classes[j], float(matrix[k, j])
    labeled, predicted = int(matrix[j].sum()), int(matrix[:, j].sum())
    if predicted > 2 * labeled:
        times = f"{predicted / labeled:.1f} times as often as it is" if labeled else "but nowhere"
        of_these = f"{share(pixels / predicted)} of these pixels are {label}"
        what = f"{prediction} is predicted {times} labeled; {of_these}"
    else:
        what = f"{share(pixels / int(matrix[k].sum()))} of {label} is taken for {prediction}"
    return [
        f"Largest confusion, {share(part)} of all labeled pixels: {what}. Look at the worst images: more "
        "source images with both classes may help, or source and target label them differently."
    ]


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
