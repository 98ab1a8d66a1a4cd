"""How far to trust the result of a run, for somebody who decides."""

from statistics import median

from cpsl.app.comparable import counted_unequally
from cpsl.app.longer import usual_steps
from cpsl.app.reporting.content import Kind, Report
from cpsl.app.titles import title_of
from cpsl.app.unpredicted import describe_unpredicted
from cpsl.app.words import listing, number, plural, share

ENOUGH_IMAGES = 50
"""Labeled images from which on the figures are reliable."""

RARE = 0.002
"""Share of the pixels below which a class is rare."""

FEW_CONFIDENT = 0.1
"""Share of confident pseudo labels below which the target loss, which is weighted by it, hardly counts."""

IN_BRIEF: dict[Kind, str] = {
    "small_gain": "The images support a gain, but another seed can differ by more than it.",
    "small_loss": "The images support a loss, but another seed can differ by more than it.",
    "trial_gain": "",
    "trial_loss": "",
    "unclear": "Open: a different choice of images could explain the change.",
    "untested": "Open: nothing tells whether the change is more than chance.",
    "rejected": "The run chose without labels, which can be wrong.",
    "short": "Not at all: the run shows only that everything works.",
    "open": "Unknown: the scores that chose can be wrong, and nothing in this report measures accuracy.",
    "unlabeled": "Unknown: without labels nothing in this report measures accuracy.",
    "single": "",
    "unfinished": "Open: the run is not finished.",
}


def trust_in_brief(report: Report, kind: Kind) -> str:
    """Returns how far to trust a run in a sentence, "" if there is nothing to compare."""
    if kind in IN_BRIEF:
        trial = "" if kind in ("short", "unfinished") else _of_trial(report)
        return f"{IN_BRIEF[kind]} {trial}".strip()
    what = "did harm" if kind == "worse" else "helped"
    enough = report.comparison is not None and report.comparison.labeled >= ENOUGH_IMAGES
    sure, amount = ("well supported", "less certain") if enough else ("likely", "uncertain")
    return f"That adaptation {what} on images like these is {sure}; by how much is {amount}."


def few_steps(report: Report) -> dict[str, int]:
    """Returns the usual steps of the compared stages that were trained in fewer than half of them."""
    steps = {stage: report.iterations[stage] for stage in report.ends if stage in report.iterations}
    return usual_steps(steps, _recipe(report))


def _recipe(report: Report) -> str:
    return "demo" if any(data.generated for data in report.data_sets) else "cpu"


def _of_trial(report: Report) -> str:
    if not (few := few_steps(report)):
        return ""
    usual = listing(f"{plural(count, 'step')} of “{title_of(stage)}”" for stage, count in few.items())
    return f"This run is a trial. Repeat it with {usual} before you rely on it."


def trust(report: Report, kind: Kind) -> list[str]:
    """Returns how far to trust a run, and why, in sentences."""
    comparison, (_, after) = report.comparison, report.mious
    found: list[str] = []
    if generated := [data.name for data in report.data_sets if data.generated]:
        found.append(
            f"The images ({listing(generated)}) are generated street scenes, no photographs: the figures say "
            "nothing about real streets."
        )
    if kind == "short":
        return found
    if after is not None and comparison is not None and comparison.labeled:
        if kind != "single" and comparison.gain is not None:
            low, high = (number(bound, signed=True) for bound in comparison.gain)
            found.append(
                f"The change depends on the images: its 95 % confidence interval is {low} to {high} points "
                f"(bootstrap over the {plural(comparison.labeled, 'image')}). Images that resemble each "
                "other, such as frames of a video, make the true interval wider."
            )
        if comparison.labeled < ENOUGH_IMAGES:
            found.append(
                f"{plural(comparison.labeled, 'labeled image')} are few: {ENOUGH_IMAGES} or more make the "
                "figures reliable."
            )
        found += _of_shared_images(report, len(comparison.images))
        unequal, _ = counted_unequally([report.metrics[stage] for stage in report.ends])
        if unequal:
            have = "has" if len(unequal) == 1 else "have"
            counted = " and ".join(number(report.metrics[stage]["miou"]) for stage in report.ends)
            found.append(
                f"{listing(unequal)} {have} no pixel in the labels. Such a class is left out of the mean IoU "
                f"above, since it counts 0 for a network that predicts it; counted, the means are {counted}."
            )
        if rare := _rare_classes(report):
            found.append(_of_rare_classes(rare))
    elif after is None:
        found.append(
            "The scores without labels compare networks of this run; they are not accuracies. A network "
            "that is consistently wrong scores well."
        )
        chosen = report.metrics[report.chosen]
        unpredicted = describe_unpredicted(chosen, report.source_labels, report.classes)
        if unpredicted == "" and chosen.get("collapses") == []:
            found.append(
                "All classes of the source are predicted, none is lost and none takes nearly all pixels: the "
                "common failures are absent."
            )
        found.append("The pictures below tell more than the scores: look for classes that are gone.")
    elif kind == "untested":
        found.append(
            "The labels cannot be read any more, so that nothing tells how much of the change is due to the "
            "choice of images."
        )
    found += _of_few_pseudo_labels(report)
    found += _of_few_steps(report)
    if kind != "single" and after is not None:
        found.append(
            "This is one run with one seed; another seed can give a figure that differs by a point or more."
        )
    if report.selected == "best" and after is not None:
        found.append("Target labels selected the weights of each stage, which makes the figures optimistic.")
    return found


def _of_few_pseudo_labels(report: Report) -> list[str]:
    confident = report.curves.get(report.ends[1], {}).get("confident", [])
    if not confident or (last := median(value for _, value in confident[-5:])) >= FEW_CONFIDENT:
        return []
    return [
        f"At the end only {share(last)} of the pseudo labels were confident, so that the network learned "
        "little from the target images."
    ]


def _of_few_steps(report: Report) -> list[str]:
    if not (few := few_steps(report)):
        return []
    trained = listing(
        f"“{title_of(stage)}” {plural(report.iterations[stage], 'step')} instead of {usual:,}"
        for stage, usual in few.items()
    )
    return [
        f"Few steps, compared with the recipe “{_recipe(report)}”: {trained}. More can change the figures."
    ]


def _of_shared_images(report: Report, images: int) -> list[str]:
    found = []
    for name, count in report.shared.items():
        if count:
            which = f"{'All' if count == images else f'{count} of the'} {images} {report.evaluated}s are also"
            how = "adapted to them, without" if name == "target" else "trained on them, with"
            found.append(
                f"{which} images of the {name}: the network was {how} their labels. Others may have a lower "
                "IoU."
            )
    return found


def _rare_classes(report: Report) -> list[str]:
    if report.comparison is None:
        return []
    pixels = report.comparison.confusion[0].sum(dim=1).double()
    shares = pixels / pixels.sum().clamp_min(1)
    return [name for name, part in zip(report.classes, shares.tolist(), strict=True) if 0 < part < RARE]


def _of_rare_classes(names: list[str]) -> str:
    have, each, their = ("has", "", "its") if len(names) == 1 else ("have", " each", "their")
    return (
        f"{listing(names)} {have} less than {100 * RARE:g} % of the labeled pixels{each}, so that a few "
        f"objects decide {their} IoU."
    )
