"""The loop of iterations that every trainer shares: it seeds, logs, checkpoints and resumes."""

import math
import signal
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from cpsl.engine.cost import Cost, peak_memory, reset_peak_memory
from cpsl.engine.files import load_checkpoint, save_checkpoint
from cpsl.engine.log import ScalarLog, logger, progress
from cpsl.engine.process import Process, mean_over_ranks
from cpsl.randomness import derive_seed

STOPPED_EXIT_CODE = 75  # "temporary failure" of sysexits.h: run the same command again


class Stateful(Protocol):
    """Anything that can be saved and restored: a module, an optimiser, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what has to be saved."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restores what `state_dict` returned."""
        ...


class TrainingLoop:
    """Iterates from where the stage was stopped to its end.

    Before each iteration the global random state is seeded from (seed, stage, iteration, rank): dropout
    and sampling need no state of their own in a checkpoint. SIGTERM and SIGINT in a run of one process
    write a checkpoint and leave with exit code 75.

    Args:
        folder: Folder of the stage.
        stage: Its name.
        iterations: Iterations in all.
        seed: Seed of the run.
        process: This process.
        state: What a checkpoint holds once: equal on every rank.
        state_of_rank: What a checkpoint holds for each rank: the memory bank.
        checkpoint_every: Iterations between checkpoints.
        log_every: Iterations between points of the curves.
        picture_every: Iterations between sample pictures.

    Raises:
        ValueError: The checkpoint was written by another number of ranks while it holds state of ranks.
        FloatingPointError: While iterating: a recorded scalar is not finite.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        *,
        iterations: int,
        seed: int,
        process: Process,
        state: Mapping[str, Stateful],
        state_of_rank: Mapping[str, Stateful] | None = None,
        checkpoint_every: int = 1000,
        log_every: int = 20,
        picture_every: int = 500,
    ) -> None:
        self.stage = stage
        self.iterations = iterations
        self.seed = seed
        self.process = process
        self.log_every = log_every
        self.picture_every = picture_every
        self.start = 0
        self._path = folder / "checkpoint.pt"
        self._state = state
        self._state_of_rank = state_of_rank or {}
        self._checkpoint_every = checkpoint_every
        self._seconds = 0.0
        self._stop = False
        self._peak_memory = 0
        self._durations: deque[float] = deque(maxlen=1000)
        self._values: dict[str, list[Tensor]] = {}
        self._resume()
        self.log = ScalarLog(folder, process, self.start)

    @property
    def cost(self) -> Cost:
        """What the stage took so far."""
        durations = list(self._durations)
        durations = durations[1:] or durations
        return Cost(
            self._seconds, statistics.median(durations) if durations else 0.0, self._peak_memory
        )

    def __iter__(self) -> Iterator[int]:
        """Yields the iterations that are left."""
        begun = time.perf_counter() - self._seconds
        handlers = self._listen()
        reset_peak_memory(self.process.device)
        try:
            left = range(self.start, self.iterations)
            bar = progress(
                left, self.stage, self.process, total=self.iterations, initial=self.start
            )
            for iteration in bar:
                torch.manual_seed(derive_seed(self.seed, self.stage, iteration, self.process.rank))
                yield iteration
                before, self._seconds = self._seconds, time.perf_counter() - begun
                self._durations.append(self._seconds - before)
                done = iteration + 1
                if done % self.log_every == 0 or done == self.iterations:
                    self._write_scalars(iteration)
                if done % self._checkpoint_every == 0 or done == self.iterations or self._stop:
                    self._save(done)
                if self._stop and done < self.iterations:
                    logger.info(
                        f"{self.stage}: stopped after {done} of {self.iterations} iterations; "
                        "the same command goes on from here"
                    )
                    raise SystemExit(STOPPED_EXIT_CODE)
        finally:
            self._peak_memory = peak_memory(self.process.device)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.log.close()

    def record(self, **values: Tensor) -> None:
        """Remembers scalars of this iteration; they are read, averaged, when the log is written."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach())

    def shows(self, iteration: int) -> bool:
        """Returns whether this iteration is to be shown in a picture."""
        return self.process.is_main and iteration % self.picture_every == 0

    def picture(self, iteration: int, name: str, image: Tensor) -> None:
        """Shows a sample picture, (3, H, W) uint8, in TensorBoard."""
        self.log.picture(iteration, name, image)

    def _write_scalars(self, iteration: int) -> None:
        values = self._means(iteration + 1)
        if not values:
            return
        self._values.clear()
        self.log.scalars(iteration + 1, values)
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        pace = self._seconds / (iteration + 1)
        logger.debug(f"{self.stage} {iteration + 1}/{self.iterations}  {text}  {pace:.2f} s/it")

    def _means(self, done: int) -> dict[str, float]:
        """Averages what was recorded since the last point of the curves; raises if it is not finite."""
        names = sorted(self._values)
        if not names:
            return {}
        means = torch.stack([torch.stack(self._values[name]).float().mean() for name in names])
        values = dict(zip(names, mean_over_ranks(means).tolist(), strict=True))
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise FloatingPointError(
                f"{self.stage}: {', '.join(wrong)} not finite shortly before iteration {done}. "
                f"The last checkpoint in {self._path.parent} is from before; "
                "a smaller learning rate or float32 precision may help."
            )
        return values

    def _save(self, iteration: int) -> None:
        self._means(iteration)  # nobody could go on from a checkpoint with broken weights
        mine = {name: _on_cpu(part.state_dict()) for name, part in self._state_of_rank.items()}
        of_ranks = self.process.gather(mine)
        if self.process.is_main:
            shared = {name: part.state_dict() for name, part in self._state.items()}
            save_checkpoint(
                self._path,
                {
                    "iteration": iteration,
                    "seconds": self._seconds,
                    "unlogged": {name: torch.stack(v) for name, v in self._values.items()},
                    "state": shared,
                    "state_of_ranks": of_ranks,
                },
            )
        self.process.barrier()

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self._path, self.process.device)
        if checkpoint is None:
            return
        of_ranks = checkpoint["state_of_ranks"]
        if self._state_of_rank and len(of_ranks) != self.process.world_size:
            raise ValueError(
                f"{self._path} was written by {len(of_ranks)} process(es), this run has "
                f"{self.process.world_size}: start as many, or delete the file to begin the stage anew"
            )
        for name, part in self._state.items():
            part.load_state_dict(checkpoint["state"][name])
        for name, part in self._state_of_rank.items():
            part.load_state_dict(of_ranks[self.process.rank][name])
        self.start = checkpoint["iteration"]
        self._seconds = checkpoint["seconds"]
        self._values = {name: list(v.unbind()) for name, v in checkpoint["unlogged"].items()}
        if 0 < self.start < self.iterations:
            logger.info(f"{self.stage}: goes on after iteration {self.start}")

    def _listen(self) -> dict[int, Any]:
        # Several ranks would stop at different iterations and wait for each other forever.
        if self.process.world_size > 1:
            return {}

        def stop(number: int, frame: FrameType | None) -> None:
            self._stop = True

        return {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.cpu() if isinstance(value, Tensor) else value for key, value in state.items()
    }
