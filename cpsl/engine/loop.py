"""The loop of iterations that every trainer shares: it seeds, logs, checkpoints and resumes."""

import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cpsl.engine.cost import Cost, peak_memory, reset_peak_memory
from cpsl.engine.files import load_checkpoint, save_checkpoint
from cpsl.engine.finite import LAG, FlagReader, all_finite, trace_not_finite
from cpsl.engine.log import ScalarLog, logger, progress
from cpsl.engine.optimization import Optimization
from cpsl.engine.process import Process, sum_over_ranks
from cpsl.engine.replay import BatchMemory
from cpsl.engine.stopping import STOPPED_EXIT_CODE, StopSignals
from cpsl.randomness import derive_seed

B = TypeVar("B")

TELL_EVERY = 30.0
"""Seconds after which a stage first says how far it is."""

MAX_LEFT_OUT, WINDOW = 10, 100
"""A stage is stopped when more than so many of the last so many steps had numbers that are not finite."""


class Stateful(Protocol):
    """Anything that can be saved and restored: a module, an optimiser, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what has to be saved."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restores what `state_dict` returned."""
        ...


@runtime_checkable
class Shardable(Stateful, Protocol):
    """A part of which each rank holds a share, and that can be shared out among another number of ranks."""

    def load_shards(self, shards: Sequence[dict[str, Any]]) -> None:
        """Restores this rank's share from what `state_dict` returned on each rank of another run."""
        ...


class TrainingLoop:
    """Iterates from where the stage was stopped to its end.

    Before each iteration the global random state is seeded from (seed, stage, iteration, rank): dropout
    and sampling need no state of their own in a checkpoint. SIGTERM and SIGINT, to any of the ranks, write
    a checkpoint after the iteration and leave with exit code 75.

    An iteration is left out if a recorded scalar or a gradient of an `Optimization` in `state` is not finite.
    It is then repeated once under observation, from copies of all state, to find the module that made the
    numbers, and reported with the images of its batches. On a CUDA device that is noticed two iterations
    later, so that nothing waits for it.

    Args:
        folder: Folder of the stage.
        stage: Its name.
        iterations: Iterations in all.
        seed: Seed of the run.
        process: This process.
        state: What a checkpoint holds once: equal on every rank.
        state_of_rank: What a checkpoint holds for each rank: the memory bank. A part that has `load_shards`
            can be resumed by another number of ranks.
        checkpoint_every: Iterations between checkpoints.
        log_every: Iterations between points of the curves.
        picture_every: Iterations between sample pictures.

    Attributes:
        start: Iterations that were done before.
        examining: Whether the current iteration is repeated to be examined: then nothing is to be written.
        log: Curves and pictures.

    Raises:
        ValueError: The checkpoint was written by another number of ranks, and a part cannot be shared out
            anew.
        FloatingPointError: While iterating: more than 10 of the last 100 iterations had to be left out, or
            weights are not finite.
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
        self.examining = False
        self._seconds = 0.0
        self._tell_at = TELL_EVERY
        self._peak_memory = 0
        self._durations: deque[float] = deque(maxlen=1000)
        self._values: dict[str, list[Tensor]] = {}
        self._recorded: dict[str, list[Tensor]] = {}
        self._memory = BatchMemory(depth=LAG)
        self._flags = FlagReader(process.device)
        self._left_out: deque[int] = deque()
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
        """Yields the iterations that are left; one that is examined a second time."""
        begun = time.perf_counter() - self._seconds
        reset_peak_memory(self.process.device)
        left = range(self.start, self.iterations)
        bar = progress(left, self.stage, self.process, total=self.iterations, initial=self.start)
        try:
            with StopSignals() as stopped:
                for iteration in bar:
                    yield self._begin(iteration)
                    before, self._seconds = self._seconds, time.perf_counter() - begun
                    self._durations.append(self._seconds - before)
                    done = iteration + 1
                    bad = self._not_finite(iteration, last=done == self.iterations)
                    stop, examine = self.process.any_rank(bool(stopped), bool(bad))
                    if examine:
                        yield from self._examine(bad)
                    if done % self.log_every == 0 or done == self.iterations:
                        self._write_scalars(done)
                    if done % self._checkpoint_every == 0 or done == self.iterations or stop:
                        self._save(done)
                    if stop:
                        logger.info(
                            f"{self.stage}: stopped after {done} of {self.iterations} iterations; "
                            "the same command goes on from here"
                        )
                        raise SystemExit(STOPPED_EXIT_CODE)
        finally:
            bar.close()  # gives the log its handlers back
            self._peak_memory = peak_memory(self.process.device)
            self.log.close()

    def batches(self, source: Iterator[B]) -> Iterator[B]:
        """Passes batches on, and remembers them for a while in case their iteration has to be examined.

        Args:
            source: Endless; batches that have `names` tell which images they are made of.
        """
        return self._memory.watch(source)

    def record(self, **values: Tensor) -> None:
        """Remembers scalars of this iteration; they are read, averaged, when the log is written."""
        for name, value in values.items():
            self._recorded.setdefault(name, []).append(value.detach())

    def shows(self, iteration: int) -> bool:
        """Returns whether this iteration is to be shown in a picture."""
        return self.process.is_main and not self.examining and iteration % self.picture_every == 0

    def picture(self, iteration: int, name: str, image: Tensor) -> None:
        """Shows a sample picture, (3, H, W) uint8, in TensorBoard."""
        self.log.picture(iteration, name, image)

    def _begin(self, iteration: int) -> int:
        self._recorded = {}
        self._memory.begin(iteration, again=self.examining)
        torch.manual_seed(derive_seed(self.seed, self.stage, iteration, self.process.rank))
        return iteration

    def _not_finite(self, iteration: int, last: bool) -> list[int]:
        """Returns the iterations of which it is known by now that their numbers are not finite."""
        for name, values in self._recorded.items():
            self._values.setdefault(name, []).extend(values)
        recorded = [value for values in self._recorded.values() for value in values]
        flags = [all_finite(recorded)] if recorded else []
        steps = [part.finite for part in self._state.values() if isinstance(part, Optimization)]
        self._flags.put(iteration, flags + [finite for finite in steps if finite is not None])
        return [number for number, finite in self._flags.take(iteration, last) if not finite]

    def _examine(self, bad: list[int]) -> Iterator[int]:
        """Repeats iterations that were left out, to find out why; nothing of the repetition remains."""
        for iteration in sorted(
            {number for numbers in self.process.gather(bad) for number in numbers}
        ):
            parts = {**self._state, **self._state_of_rank}
            before = {name: _copy(part.state_dict()) for name, part in parts.items()}
            self.examining = True
            with trace_not_finite(parts) as found:
                yield self._begin(iteration)
            self.examining = False
            for name, part in parts.items():
                part.load_state_dict(before[name])
            self._report(iteration, found[:1])

    def _report(self, iteration: int, found: list[str]) -> None:
        """Says what was left out and why; raises if that happens too often."""
        wrong = [name for name, values in self._recorded.items() if not all_finite(values)]
        findings = [f"{name} is not finite" for name in wrong or ["a gradient"][: len(found)]]
        findings += [f"it began with {first}" for first in found]
        mine = ", ".join(findings), ", ".join(self._memory.names(iteration))
        told = [
            f"{self.stage}: step {iteration + 1} was left out: {what}; images: {images or 'unknown'}"
            for what, images in self.process.gather(mine)
            if what
        ]
        again = (
            f"{self.stage}: step {iteration + 1} was left out; repeated, all its numbers are finite"
        )
        message = "\n".join(told or [again])
        logger.warning(message)
        self._left_out.append(iteration)
        while self._left_out[0] <= iteration - WINDOW:
            self._left_out.popleft()
        if len(self._left_out) > MAX_LEFT_OUT:
            raise FloatingPointError(
                f"{message}\n{self.stage}: stopped, since {len(self._left_out)} of {WINDOW} steps had "
                f"numbers that are not finite. The last checkpoint in {self._path.parent} is from before. "
                "If it is always the same images, look at these; else a smaller learning rate or float32 "
                "precision may help."
            )

    def _write_scalars(self, done: int) -> None:
        values = self._means()
        self._values.clear()
        if not values:
            return
        self.log.scalars(done, values)
        if self._seconds < self._tell_at:
            return
        # Ever more seldom: a line each half minute at first, some hundred in a stage of days.
        self._tell_at = 1.05 * self._seconds + TELL_EVERY
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        left = (self.iterations - done) * self._seconds / done
        logger.info(
            f"{self.stage}: {done} of {self.iterations}, {timedelta(seconds=round(left))} left  {text}"
        )

    def _means(self) -> dict[str, float]:
        """Averages the finite ones of what was recorded since the last point of the curves."""
        names = sorted(self._values)
        if not names:
            return {}
        recorded = [torch.stack(self._values[name]).double() for name in names]
        sums = torch.stack([values.nan_to_num(0, 0, 0).sum() for values in recorded])
        counts = torch.stack([values.isfinite().sum() for values in recorded])
        means = sum_over_ranks(sums) / sum_over_ranks(counts)
        return {
            name: value for name, value in zip(names, means.tolist(), strict=True) if value == value
        }

    def _save(self, iteration: int) -> None:
        shared = {name: part.state_dict() for name, part in self._state.items()}
        self._check_weights(
            iteration, shared
        )  # on every rank, so that none waits for one that fails
        mine = {name: _copy(part.state_dict()) for name, part in self._state_of_rank.items()}
        of_ranks = self.process.gather(mine)
        if self.process.is_main:
            save_checkpoint(
                self._path,
                {
                    "iteration": iteration,
                    "seconds": self._seconds,
                    "unlogged": {name: torch.stack(v) for name, v in self._values.items()},
                    "left_out": list(self._left_out),
                    "state": shared,
                    "state_of_ranks": of_ranks,
                },
            )
        self.process.barrier()

    def _check_weights(self, iteration: int, state: dict[str, dict[str, Any]]) -> None:
        # Nobody could go on from such a checkpoint.
        for name, part in state.items():
            for key, value in part.items():
                if isinstance(value, Tensor) and not all_finite([value]):
                    raise FloatingPointError(
                        f"{self.stage}: {key} of the {name} is not finite after iteration {iteration}. "
                        f"The last checkpoint in {self._path.parent} is from before; "
                        "a smaller learning rate or float32 precision may help."
                    )

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self._path, self.process.device)
        if checkpoint is None:
            return
        of_ranks = checkpoint["state_of_ranks"]
        for name, part in self._state.items():
            part.load_state_dict(checkpoint["state"][name])
        for name, part in self._state_of_rank.items():
            shards = [states[name] for states in of_ranks]
            if len(shards) == self.process.world_size:
                part.load_state_dict(shards[self.process.rank])
            elif isinstance(part, Shardable):
                part.load_shards(shards)
            else:
                raise ValueError(
                    f"{self._path} was written by {len(of_ranks)} process(es), this run has "
                    f"{self.process.world_size}: start as many, or delete the file to begin the stage anew"
                )
        self.start = checkpoint["iteration"]
        self._seconds = checkpoint["seconds"]
        self._tell_at = self._seconds + TELL_EVERY
        self._values = {name: list(v.unbind()) for name, v in checkpoint["unlogged"].items()}
        self._left_out = deque(checkpoint.get("left_out", []))
        if 0 < self.start < self.iterations:
            logger.info(f"{self.stage}: goes on after iteration {self.start}")


def _copy(state: dict[str, Any]) -> Any:
    """Copies a state to the main memory, of which there is more."""
    return tree_map(
        lambda value: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value,
        state,
    )
