"""Selection of the weights that a stage ends with: the last, or the best by target labels."""

import math
from typing import Any

from cpsl.app.config import Config
from cpsl.app.evaluate import evaluate, evaluating
from cpsl.app.networks import save_model
from cpsl.models import SegmentationNetwork
from cpsl.training import Process, TrainingLoop, load, logger, save


class CheckpointSelection:
    """Evaluates a network, without its parallel wrapper, during training; writes the model of its stage."""

    def __init__(self, model: SegmentationNetwork, stage: str, config: Config, process: Process) -> None:
        self._model = model
        self._folder = config.output / stage
        self._config = config
        self._process = process
        self._selects = config.select_checkpoint == "best"
        self._best = -math.inf

    def update(self, loop: TrainingLoop, iteration: int) -> None:
        """Evaluates the network every `evaluate_every` iterations; call it on every rank after the step."""
        every, done = self._config.evaluate_every, iteration + 1
        if every < 1 or (done % every and done < loop.iterations):
            return
        with evaluating(self._model):
            miou = evaluate(self._model, self._config, self._process)["miou"]
        if miou is None:
            return
        loop.log.scalars(done, {"miou": miou})
        logger.info(f"{loop.stage}: mIoU {miou:.1f} after {done} iterations")
        if miou > self._best:
            self._best = miou
            if self._selects and self._process.is_main:
                save_model(self._folder / "best.pt", self._model, self._config)

    def save(self) -> None:
        """Writes `model.pt`: the last weights, or the best."""
        if self._process.is_main and self._selects:
            save(self._folder / "model.pt", load(self._folder / "best.pt"))
        elif self._process.is_main:
            save_model(self._folder / "model.pt", self._model, self._config)

    def state_dict(self) -> dict[str, Any]:
        """Returns the best result so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""
        self._best = state_dict["best"]
