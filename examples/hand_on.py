"""Which weights a stage ends with: the last, or the best of some evaluations on the way."""

import math
from typing import Any

from config import Config
from cpsl.engine import Process, TrainingLoop, load, logger, save
from cpsl.models import DeepLabV2
from evaluate import evaluate, evaluating
from networks import save_model


class HandOn:
    """Evaluates a student while it trains, and writes the model of its stage.

    Args:
        model: The student itself, not its parallel wrapper.
        stage: Name of the stage, in whose folder the model is written.
        config: Settings.
        process: This process.
    """

    def __init__(self, model: DeepLabV2, stage: str, config: Config, process: Process) -> None:
        self._model = model
        self._folder = config.output / stage
        self._config = config
        self._process = process
        self._best = -math.inf

    def look(self, loop: TrainingLoop, iteration: int) -> None:
        """Evaluates the student, if it is time; on every rank, after the optimiser's step."""
        every, done = self._config.evaluate_every, iteration + 1
        if loop.examining or every < 1 or (done % every and done < loop.iterations):
            return
        with evaluating(self._model):
            miou = evaluate(self._model, self._config, self._process)["miou"]
        if miou is None:
            return
        loop.log.scalars(done, {"miou": miou})
        logger.info(f"{loop.stage}: mIoU {miou:.1f} after {done} iterations")
        if miou > self._best:
            self._best = miou
            if self._config.hand_on == "best" and self._process.is_main:
                save_model(self._folder / "best.pt", self._model, self._config)

    def save(self) -> None:
        """Writes `model.pt`: the last weights, or the best."""
        if not self._process.is_main:
            return
        if self._config.hand_on == "best":
            save(self._folder / "model.pt", load(self._folder / "best.pt"))
        else:
            save_model(self._folder / "model.pt", self._model, self._config)

    def state_dict(self) -> dict[str, Any]:
        """Returns the best result so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._best = state_dict["best"]
