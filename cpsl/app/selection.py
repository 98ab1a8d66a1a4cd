"""Selection of networks: the weights that a stage ends with, and the stage that a run ends with."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cpsl import find_collapses
from cpsl.app.class_shares import source_distribution
from cpsl.app.config import METHODS, Config
from cpsl.app.datasets import label_space
from cpsl.app.evaluate import evaluate, evaluating, read_metrics
from cpsl.app.networks import save_model
from cpsl.app.titles import SCORES
from cpsl.models import SegmentationNetwork
from cpsl.training import Process, TrainingLoop, load, logger, save

SCORE = "information"
"""The label-free score that selects networks; higher is better. docs/choosing.md compares the scores."""

SCORE_IN_WORDS = "information (certain predictions of many classes)"
"""What `SCORE` measures, for people."""

SECOND_SCORE = "flip_miou"
"""A network is rejected if it is lower than an earlier one in `SCORE` and in this score."""

SAME_SCORE = 0.02
"""Difference of a score that says nothing: other seeds differ as much. docs/choosing.md has the runs."""

Metrics = Mapping[str, Any]
"""A result of `evaluate`, and `collapses`, the result of `describe_collapses`."""


def choose(
    candidates: Mapping[str, Metrics], titles: Mapping[str, str] | None = None, tolerance: float = SAME_SCORE
) -> tuple[str, str]:
    """Chooses one of several networks without labels, by `SCORE`, among those that did not collapse.

    Args:
        candidates: Metrics of each network by its name, in the order of training.
        titles: Names that the reason has instead, for readers who do not know the settings.
        tolerance: The last network is chosen whose score is at most this far below the highest, unless an
            earlier one has a higher `SCORE` and a higher `SECOND_SCORE`.

    Returns:
        The name of the network, and the reason. If none has a score, the name of the last.

    Example:
        >>> low, high = {"scores": {"information": 0.4}}, {"scores": {"information": 0.5}}
        >>> name, reason = choose({"source_only": low, "warmup": high})
        >>> print(name)
        warmup
        >>> print(reason)
        its information (certain predictions of many classes) is the highest: 0.500 (source_only 0.400)
        >>> lost = {**high, "collapses": ["pole is lost"]}
        >>> print(choose({"source_only": low, "warmup": lost}, {"warmup": "Warm-up"})[1])
        its information (certain predictions of many classes) is 0.400, and Warm-up is excluded (pole is lost)
    """
    values = {name: _score(metrics) for name, metrics in candidates.items()}
    lost = {name: metrics["collapses"] for name, metrics in candidates.items() if metrics.get("collapses")}
    eligible = [name for name in candidates if name not in lost] or list(candidates)
    scored = [name for name in eligible if values[name] > -math.inf]
    if not scored:
        return eligible[-1], "no stage has scores, and it is the last"
    highest = max(values[name] for name in scored)
    similar = [name for name in scored if highest - values[name] <= tolerance]
    chosen = [name for i, name in enumerate(similar) if not _is_lower(name, similar[:i], candidates)][-1]
    worse = similar[similar.index(chosen) + 1 :]
    called = {name: (titles or {}).get(name, name) for name in candidates}
    others = {called[name]: f"{values[name]:.3f}" for name in scored if name != chosen}
    value = f"{values[chosen]:.3f}"
    if others:
        if values[chosen] < highest:
            last = "the last is taken that is not excluded" if worse else "the last is taken"
            compared = f"within {tolerance:g} of the highest, and of such stages {last}"
        else:
            compared = "as high as any" if value in others.values() else "the highest"
        value = f"{compared}: {value} ({', '.join(f'{name} {other}' for name, other in others.items())})"
    excluded = [
        f"{called[name]} is excluded ({summarize(lost[name])})" for name in lost if name not in eligible
    ]
    if worse:
        names = f"{', '.join(called[name] for name in worse)} {'is' if len(worse) == 1 else 'are'}"
        excluded.append(
            f"{names} excluded (lower than an earlier stage in information, and in consistency with mirrored "
            "images)"
        )
    return chosen, ", and ".join([f"its {SCORE_IN_WORDS} is {value}", *excluded])


def summarize(reasons: Sequence[str]) -> str:
    """Returns the first three collapses of a network, and how many more there are.

    Example:
        >>> summarize(["sky is lost", "pole is lost", "car is lost", "bus is lost"])
        'sky is lost; pole is lost; car is lost; and 1 more'
    """
    more = [f"and {len(reasons) - 3} more"] if len(reasons) > 3 else []
    return "; ".join([*reasons[:3], *more])


def _is_lower(name: str, earlier: Sequence[str], candidates: Mapping[str, Metrics]) -> bool:
    """Returns whether one of the earlier networks is higher in both scores."""
    own = [_score(candidates[name], key) for key in (SCORE, SECOND_SCORE)]
    for other in earlier:
        theirs = [_score(candidates[other], key) for key in (SCORE, SECOND_SCORE)]
        if all(-math.inf < a < b for a, b in zip(own, theirs, strict=True)):
            return True
    return False


def _score(metrics: Metrics, key: str = SCORE) -> float:
    value = (metrics.get("scores") or {}).get(key)
    return -math.inf if value is None else float(value)


def earlier_metrics(config: Config, stage: str, latest: bool = False) -> Metrics | None:
    """Returns the metrics of the first earlier stage, with which others are compared, or of the latest."""
    stages = METHODS[config.method]
    finished = {
        name: metrics
        for name, metrics in read_metrics(config).items()
        if stages.index(name) < stages.index(stage)
    }
    return next(iter(reversed(finished.values()) if latest else finished.values()), None)


def evaluation_in_brief(metrics: Metrics, earlier: bool = False) -> str:
    """Returns the mIoU of an evaluation, without labels its score, for a line about the progress.

    That of an earlier stage says so, lest it reads as a result of the stage that is trained.

    Example:
        >>> evaluation_in_brief({"miou": 41.38}), evaluation_in_brief({"miou": None, "scores": {}})
        ('mIoU 41.4', '')
        >>> evaluation_in_brief({"miou": 36.4}, earlier=True)
        'mIoU before: 36.4'
    """
    before = " before:" if earlier else ""
    if metrics["miou"] is not None:
        return f"mIoU{before} {metrics['miou']:.1f}"
    score = _score(metrics)
    return "" if score == -math.inf else f"information{before} {score:.3f}"


def describe_collapses(
    metrics: Metrics, earlier: Metrics | None, config: Config, source: Tensor | None
) -> list[str]:
    """Returns what the predictions have lost since an earlier network, in sentences without periods."""
    frequencies = [m.get("class_frequency") for m in (metrics, earlier or {})]
    if not all(frequency and sum(frequency) > 0 for frequency in frequencies):
        return []
    now, before = map(torch.tensor, frequencies)
    return [collapse.reason for collapse in find_collapses(now, before, label_space(config).names, source)]


class CheckpointSelection:
    """Evaluates a network, without its parallel wrapper, during training; writes the model of its stage.

    `select_checkpoint` selects the weights: "last", or the best of the evaluations, by target labels for
    "best" and by `choose` for "score". For "score" the weights before the first step are a candidate, unless
    they are no trained network. If the last weights collapsed, "last" selects like "score".
    """

    def __init__(self, model: SegmentationNetwork, stage: str, config: Config, process: Process) -> None:
        self._model = model
        self._stage = stage
        self._folder = config.output / stage
        self._config = config
        self._process = process
        self._mode = config.select_checkpoint
        self._earlier: Metrics | None = None  # with which later evaluations are compared
        self._best: Metrics | None = None
        self._last: Metrics | None = None

    def start(self, loop: TrainingLoop) -> None:
        """Evaluates the weights before the first step, if they are a candidate; call it on every rank."""
        if self._last is not None:  # resumed
            loop.evaluated = evaluation_in_brief(self._last)
        elif earlier := earlier_metrics(self._config, self._stage, latest=True):
            loop.evaluated = evaluation_in_brief(earlier, earlier=True)
        if self._mode == "best" or not self._evaluates:
            return
        if loop.start == 0 and _starts_trained(self._config, self._stage):
            self._evaluate(0)

    def update(self, loop: TrainingLoop, iteration: int) -> None:
        """Evaluates the network every `evaluate_every` iterations; call it on every rank after the step."""
        every, done = self._config.evaluate_every, iteration + 1
        if self._evaluates and (done == loop.iterations or (every > 0 and done % every == 0)):
            metrics = self._evaluate(done)
            curves = {"miou": metrics["miou"], **{name: metrics["scores"].get(name) for name in SCORES}}
            loop.log.scalars(done, {name: value for name, value in curves.items() if value is not None})
            loop.evaluated = evaluation_in_brief(metrics)

    @property
    def _evaluates(self) -> bool:
        return self._config.evaluate_every > 0 or self._mode == "score"

    @cached_property
    def _source(self) -> Tensor | None:
        return source_distribution(self._config)

    def _evaluate(self, done: int) -> Metrics:
        if self._earlier is None:
            self._earlier = earlier_metrics(self._config, self._stage)
        with evaluating(self._model):
            metrics = evaluate(self._model, self._config, self._process, source=self._source)
        collapses = describe_collapses(metrics, self._earlier, self._config, self._source)
        kept = ("miou", "scores", "class_frequency")
        self._last = {**{key: metrics[key] for key in kept}, "collapses": collapses}
        if done == 0 and self._earlier is None:
            self._earlier = self._last
        labeled = "" if metrics["miou"] is None else f"mIoU {metrics['miou']:.1f}"
        parts = [labeled, evaluation_in_brief({**metrics, "miou": None})]
        result = ", ".join(filter(None, parts)) or "evaluated"
        when = f"after {done} iterations" if done else "before the first iteration"
        logger.info(f"{self._stage}: {result} {when}")
        if collapses:
            logger.warning(f"{self._stage} after {done} iterations: {summarize(collapses)}")
        if self._improves(self._last):
            self._best = self._last
            if self._process.is_main:
                save_model(self._folder / "best.pt", self._model, self._config)
        return self._last

    def _improves(self, metrics: Metrics) -> bool:
        if self._best is None:
            return self._mode != "best" or metrics["miou"] is not None
        if self._mode == "best":
            return bool(metrics["miou"] is not None and metrics["miou"] > self._best["miou"])
        return choose({"best": self._best, "new": metrics}, tolerance=0.0)[0] == "new"

    def save(self) -> None:
        """Writes `model.pt`: the last weights, or the best."""
        if not self._process.is_main:
            return
        collapsed = self._last is not None and bool(self._last["collapses"])
        if self._mode == "last" and collapsed:
            logger.warning(
                f"{self._stage}: ends with the best of its evaluations by their {SCORE_IN_WORDS}, "
                "not with the last"
            )
        if self._best is not None and (self._mode != "last" or collapsed):
            save(self._folder / "model.pt", load(self._folder / "best.pt"))
        else:
            save_model(self._folder / "model.pt", self._model, self._config)

    def state_dict(self) -> dict[str, Any]:
        """Returns the best and the last evaluation so far, and that with which they are compared."""
        return {"best": self._best, "last": self._last, "earlier": self._earlier}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the evaluations of `state_dict`."""
        self._best, self._last, self._earlier = (state_dict[key] for key in ("best", "last", "earlier"))


def _starts_trained(config: Config, stage: str) -> bool:
    """Returns whether a stage starts from a trained network, not from pretrained or random weights."""
    settings = config.settings_of(stage)
    start = getattr(settings, "start", getattr(settings, "student", "previous"))
    return start not in ("pretrained", "random")
