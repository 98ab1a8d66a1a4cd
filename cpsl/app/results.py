"""Results of a run in the terminal: a table of its stages, and what to do next."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from textwrap import fill
from typing import Any

from cpsl._internal.durations import describe_duration
from cpsl.app.comparable import counted_unequally
from cpsl.app.config import Config
from cpsl.app.longer import lacking_steps, short_stages
from cpsl.app.titles import SHORT_SCORES
from cpsl.app.usage import list_next, program, tensorboard
from cpsl.app.words import difference, listing
from cpsl.training.log import text_table

Metrics = Mapping[str, Mapping[str, Any]]


def results_table(metrics: Metrics, classes: Iterable[str], chosen: str = "") -> str:
    """Returns the results of all stages as a table of text, with the change from the first to another stage.

    The change stands beside that stage, whose name in its heading would not fit into 80 columns.

    With labels it has the IoU of each class. Without, it has the share of each class in the predictions, and
    the scores that need no labels.

    Args:
        metrics: Content of `metrics.json` by stage.
        classes: Names of the classes.
        chosen: Stage that is compared with the first; the last stage if it is the first itself.

    Example:
        >>> before = {"miou": 50.0, "iou": {"road": 40.0, "sky": 60.0}, "seconds": 3.2}
        >>> after = {"miou": 52.0, "iou": {"road": 44.0, "sky": 60.0}, "seconds": 7500}
        >>> print(results_table({"source_only": before, "online": after}, ("road", "sky")))
        IoU in %  source_only  online  change
        road             40.0    44.0    +4.0
        sky              60.0    60.0     0.0
        mIoU             50.0    52.0    +2.0
        change: online compared with source_only
        trained in: source_only 3 s, online 2 h 5 min
    """
    stages = list(metrics)
    first = stages[0]
    other = chosen if chosen not in ("", first) else stages[-1]
    labeled = any(values["miou"] is not None for values in metrics.values())
    title = "IoU in %" if labeled else "pixels in %"
    column = stages.index(other) + 1  # of the change, among those of numbers
    rows = [[title, *stages[:column], "change", *stages[column:]]]

    def add(name: str, digits: int, numbers: list[float | None]) -> None:
        before, after = (numbers[stages.index(stage)] for stage in (first, other))
        cells = ["-" if number is None else f"{number:.{digits}f}" for number in numbers]
        change = difference(before, after, digits)
        cells.insert(column, "-" if change is None else f"{change:{'+' if change else ''}.{digits}f}")
        rows.append([name, *cells])

    results = list(metrics.values())
    for index, name in enumerate(classes):
        ious = [values["iou"].get(name) for values in results]
        add(name, 1, ious if labeled else [_share(values, index) for values in results])
    if labeled:
        add("mIoU", 1, [values["miou"] for values in results])
        unequal, means = counted_unequally(results)
        if unequal:
            add("comparable mIoU", 1, means)
        if any("miou_13" in values for values in results):
            add("mIoU, 13 classes", 1, [values.get("miou_13") for values in results])
    else:
        for key, name in SHORT_SCORES.items():
            scores = [(values.get("scores") or {}).get(key) for values in results]
            if any(score is not None for score in scores):
                add(name, 3, scores)
    notes = [] if labeled else ["No target labels: no IoU. Scores: (+) higher is better, (-) lower."]
    if labeled and unequal:
        rule = "such a class counts 0 in the mIoU of stages that predict it"
        notes.append(fill(f"not in the labels: {listing(unequal)}; {rule}, and not in the row below it", 78))
    if other == first:
        rows = [row[:-1] for row in rows]  # nothing to compare
    else:
        notes.insert(0, f"change: {other} compared with {first}")
    times = [f"{stage} {describe_duration(values['seconds'])}" for stage, values in metrics.items()]
    notes.append(fill(f"trained in: {', '.join(times)}", 78))
    return "\n".join([text_table(rows, gap=2), *notes])


def _share(values: Mapping[str, Any], index: int) -> float | None:
    shares = values.get("class_frequency")
    return 100 * shares[index] if shares else None


def too_short(config: Config) -> str:
    """Returns a warning if the iterations of stages are too few to mean anything, or few, else ""."""
    if short := [f"{stage} {count}" for stage, count in short_stages(config).items()]:
        return (
            f"This run is too short for its figures to mean anything: iterations of {', '.join(short)}. "
            "It shows that everything works."
        )
    if few := [f"{count:,} of {stage}" for stage, count in lacking_steps(config).items()]:
        return f"This run is a trial: repeat it with more iterations before you rely on it: {', '.join(few)}."
    return ""


def unkept_stage(config: Config, metrics: Metrics, chosen: str) -> str:
    """Returns where the network of the last stage is, and whether it is better, if a run ends without it.

    Args:
        config: Settings of the run.
        metrics: Content of `metrics.json` by stage.
        chosen: Stage whose network is the run's model.
    """
    last = list(metrics)[-1]
    if last == chosen:
        return ""
    kept, other = counted_unequally([metrics[chosen], metrics[last]])[1]
    higher = kept is not None and other is not None and round(other, 1) > round(kept, 1)
    although = f", although its mIoU is higher ({other:.1f}, not {kept:.1f})" if higher else ""
    return f"Not kept: {last}{although}. Its network: {config.output / last / 'model.pt'}"


def next_steps(config: Config, longer: str = "") -> str:
    """Returns the commands that use the results of a run, ready to be copied.

    A run that had few steps has a command `longer` as the first.
    """
    run = program()
    model, results = config.output / "model.pt", config.output / "predictions"
    file = "model.onnx" if find_spec("onnxruntime") and find_spec("onnxscript") else "model.pt2"
    images = quote(str(target_images(config)))
    steps = {"train longer": f"{run} {longer}"} if longer else {}
    steps |= {
        "open the report in a browser": quote(str(config.output / "report.html")),
        "segment images": f"{run} predict --weights {quote(str(model))} --input {images} "
        f"--output {quote(str(results))}",
        "export the model": f"{run} export --weights {quote(str(model))} "
        f"--output {quote(str(config.output / file))}",
        "compare curves and pictures": f"{tensorboard()} --logdir {quote(str(config.output))}",
    }
    return list_next(steps)


def target_images(config: Config) -> Path:
    """Returns the folder of the target's images."""
    domain = config.target
    folders = {
        "cityscapes": Path("leftImg8bit") / domain.split,
        "gta5": Path("images"),
        "synthia": Path("RGB"),
    }
    if domain.dataset == "folder":
        return domain.images or Path("IMAGES")
    return (domain.root or Path()) / folders[domain.dataset]
