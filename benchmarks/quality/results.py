"""Results of runs: means and spreads over seeds, differences, and what the label-free scores are worth."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpsl.app.selection import SCORE, choose

from .rows import Row
from .runs import Run

SCORES = {
    "information": 1,
    "flip_miou": 1,
    "flip_agreement": 1,
    "density": 1,
    "entropy": -1,
    "flip_divergence": -1,
    "class_divergence": -1,
    "class_variation": -1,
}
"""The label-free scores of `metrics.json`: 1 if a higher score is better, else -1."""

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        row: Its row.
        seed: Its seed.
        stages: The metrics of each stage, as the program stores them; the last is the row's result.
        minutes: Time of training, with that of the source-only network.
    """

    row: Row
    seed: int
    stages: Mapping[str, Metrics]
    minutes: float

    @property
    def iou(self) -> Mapping[str, float | None]:
        """The IoU of each class in percent, None for a class without pixels."""
        iou: Mapping[str, float | None] = self.last["iou"]
        return iou

    @property
    def last(self) -> Metrics:
        """The metrics of the last stage."""
        return [*self.stages.values()][-1]

    @property
    def miou(self) -> float:
        """The mIoU of the last stage in percent."""
        return float(self.last["miou"])

    @property
    def chosen_miou(self) -> float:
        """The mIoU of the stage that the program chooses without labels as the result of the run."""
        return float(self.stages[choose(self.stages)[0]]["miou"])

    def mean_iou(self, classes: Iterable[str]) -> float:
        """Returns the mean IoU of those of the classes that have one."""
        found = [value for name in classes if (value := self.iou.get(name)) is not None]
        return float(np.mean(found)) if found else float("nan")


def read_result(run: Run) -> Result:
    """Reads the result of a finished run."""
    stages = {stage: _read(run, stage) for stage in run.stages}
    seconds = sum(metrics["seconds"] for metrics in stages.values())
    if run.source is not None:
        seconds += _read(run.source, "source_only")["seconds"]
    return Result(run.row, run.seed, stages, seconds / 60)


def _read(run: Run, stage: str) -> Metrics:
    metrics: Metrics = json.loads((run.folder / stage / "metrics.json").read_text(encoding="utf-8"))
    return metrics


class Spread(NamedTuple):
    """Mean and half range over seeds."""

    mean: float
    half_range: float
    seeds: int

    def text(self, sign: bool = False) -> str:
        """Returns it as in the tables.

        Example:
            >>> spread([50.0, 52.0]).text(), spread([0.5]).text(sign=True)
            ('51.0 ± 1.0', '+0.5')
        """
        mean = f"{self.mean:+.1f}" if sign else f"{self.mean:.1f}"
        return f"{mean} ± {self.half_range:.1f}" if self.seeds > 1 else mean


def spread(values: Sequence[float]) -> Spread:
    """Returns mean and half range of at least one value."""
    return Spread(float(np.mean(values)), (max(values) - min(values)) / 2, len(values))


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Spread | None:
    """Returns the difference of two results by seed, over the seeds that both have; None if there are none.

    Example:
        >>> paired({0: 52.0, 1: 54.0}, {0: 50.0, 1: 51.0, 2: 40.0})
        Spread(mean=2.5, half_range=0.5, seeds=2)
    """
    common = [values[seed] - others[seed] for seed in values if seed in others]
    return spread(common) if common else None


def largest_loss(results: Sequence[Result], others: Sequence[Result]) -> tuple[str, float] | None:
    """Returns the class whose IoU falls the most, as a mean over the seeds of both, and its difference."""
    before = {result.seed: result.iou for result in others}
    differences: dict[str, list[float]] = {}
    for result in results:
        for name, value in result.iou.items():
            other = before.get(result.seed, {}).get(name)
            if value is not None and other is not None:
                differences.setdefault(name, []).append(value - other)
    means = {name: float(np.mean(values)) for name, values in differences.items()}
    return min(means.items(), key=lambda item: item[1], default=None)


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Returns ranks from 0 on; equal values share the mean of their ranks.

    Example:
        >>> ranks([3.0, 1.0, 3.0]).tolist()
        [1.5, 0.0, 1.5]
    """
    array = np.asarray(values, np.float64)
    below = (array[:, None] > array).sum(1)
    equal = (array[:, None] == array).sum(1)
    shared: NDArray[np.float64] = below + (equal - 1) / 2
    return shared


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns the rank correlation of two sequences, -1...1; NaN if one is constant.

    Example:
        >>> round(spearman([1, 2, 3, 4], [10, 20, 40, 30]), 3)
        0.8
    """
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


class ScoreWorth(NamedTuple):
    """What a label-free score is worth on a shift.

    Attributes:
        correlation: Rank correlation with the mIoU over all networks; 1 orders as labels do.
        loss: By how much the network that it chooses among all of a seed is below the best one; the mean over
            seeds.
        gain: mIoU of the stage that it chooses in a run, minus that of the last; the mean over runs.
        worst: The same of the worst run.
        networks: Number of networks.
    """

    correlation: float
    loss: float
    gain: float
    worst: float
    networks: int


def score_worth(results: Sequence[Result], score: str) -> ScoreWorth | None:
    """Returns what a score is worth, without the oracle; None without a network that has the score.

    Networks that collapsed are not chosen, unless all of a run did; an earlier stage is not chosen for a
    difference of `SCORE` that says nothing. This is the program's choice without its second score.
    """
    results = [result for result in results if result.row.name != "oracle"]
    networks = [(result.seed, network) for result in results for network in _own_networks(result)]
    scored = [(seed, network) for seed, network in networks if _value(network, score) is not None]
    if not scored:
        return None
    correlation = spearman([_oriented(n, score) for _, n in scored], [float(n["miou"]) for _, n in scored])
    losses = []
    for seed in {seed for seed, _ in scored}:
        candidates = [network for of_seed, network in scored if of_seed == seed]
        losses.append(max(n["miou"] for n in candidates) - _best(candidates, score)["miou"])
    several = [result for result in results if len(result.stages) > 1]
    gains = [_chosen(r, score)["miou"] - r.miou for r in several] or [float("nan")]
    return ScoreWorth(correlation, float(np.mean(losses)), float(np.mean(gains)), min(gains), len(scored))


def _own_networks(result: Result) -> list[Metrics]:
    """Returns the networks that a run trained itself, not the source-only network that it shares."""
    return [m for stage, m in result.stages.items() if not (result.row.adapts and stage == "source_only")]


def _value(metrics: Metrics, score: str) -> float | None:
    value: float | None = metrics["scores"].get(score)
    return value


def _oriented(metrics: Metrics, score: str) -> float:
    value = _value(metrics, score)
    return float("-inf") if value is None else SCORES[score] * value


def _chosen(result: Result, score: str) -> Metrics:
    """Returns the stage that a score alone chooses, with the tolerance of the program if it is its score."""
    if score == SCORE:
        alone = {name: {**m, "scores": {SCORE: _value(m, SCORE)}} for name, m in result.stages.items()}
        return result.stages[choose(alone)[0]]
    return _best([*result.stages.values()], score)


def _best(networks: Sequence[Metrics], score: str) -> Metrics:
    eligible = [network for network in networks if not network.get("collapses")] or networks
    return max(eligible, key=lambda network: _oriented(network, score))
