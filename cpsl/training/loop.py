"""The loop of iterations that all stages share: seeds, logs, checkpoints, skipped steps."""

import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from cpsl._internal.distributed import all_reduce_sum
from cpsl._internal.interrupts import STOPPED_EXIT_CODES
from cpsl._internal.randomness import derive_seed
from cpsl.training.checkpoints import load_checkpoint, save_checkpoint
from cpsl.training.cost import Cost, peak_memory, reset_peak_memory
from cpsl.training.display import Position, Progress, State
from cpsl.training.finite import SkippedSteps, all_finite, trace_non_finite
from cpsl.training.log import ScalarLog, logger
from cpsl.training.process import Process
from cpsl.training.signals import StopSignals

MAX_SKIPPED, WINDOW = 10, 100
"""A stage stops if more than this many of the last WINDOW steps were skipped."""


class Stateful(Protocol):
    """Anything with a state that can be saved and restored: a module, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restores the result of `state_dict`."""


@runtime_checkable
class Shardable(Stateful, Protocol):
    """A part that is divided among the ranks, and can be divided among another number of ranks."""

    def load_shards(self, shards: Sequence[dict[str, Any]]) -> None:
        """Restores this rank's share from the states of all ranks of another run."""


class _Step(NamedTuple):
    """A step that may turn out to have been skipped."""

    iteration: int
    images: list[str]
    recorded: dict[str, list[Tensor]]
    origin: str


class TrainingLoop:
    """Iterates over a stage, or over its remaining iterations if it was interrupted.

    Before each iteration the global random state is seeded from (seed, stage, iteration, rank), so that
    dropout and sampling need no state in a checkpoint. SIGTERM or SIGINT, to any rank, writes a checkpoint
    after the iteration and exits with code 75 or 130. Skipped steps are counted and logged with their images;
    on a CUDA device two iterations later, which avoids synchronization.

    Args:
        folder: Folder of the stage.
        stage: Name of the stage.
        iterations: Total number of iterations.
        seed: Seed of the run.
        process: This process.
        state: Parts that are equal on every rank, restored in order: a network before its `Optimization`.
        state_of_rank: Parts that differ between ranks, such as the memory bank. Those with `load_shards` can
            be resumed by another number of ranks.
        checkpoint_every: Iterations between checkpoints.
        log_every: Iterations between points of the curves.
        picture_every: Iterations between sample pictures.
        trace_non_finite: Whether to find the first module with non-finite numbers; slow, for debugging.
        position: Position of the stage in the run, for the progress that is shown.
        titles: Titles of recorded scalars in TensorBoard; others have their own names.

    Attributes:
        evaluated: Result of the last evaluation in a few words, for the progress that is shown.
        start: Number of iterations completed by earlier processes.
        log: Curves and pictures.

    Raises:
        ValueError: The checkpoint was written by another number of ranks, and a part has no `load_shards`.
        FloatingPointError: While iterating: more than 10 of the last 100 steps were skipped, or weights are
            not finite.
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
        trace_non_finite: bool = False,
        position: Position | None = None,
        titles: Mapping[str, str] | None = None,
    ) -> None:
        self.evaluated = ""
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
        self._trace = trace_non_finite
        self._iteration = 0
        self._seconds = 0.0
        self._position = position or Position()
        self._peak_memory = 0
        self._durations: deque[float] = deque(maxlen=1000)
        self._values: dict[str, list[Tensor]] = {}
        self._recorded: dict[str, list[Tensor]] = {}
        self._origins: list[str] = []
        self._steps = SkippedSteps(process.device)
        self._skipped: deque[int] = deque()
        self._resume()
        self.log = ScalarLog(folder, process, self.start, f"{self._position.number} {stage}", titles)

    @property
    def cost(self) -> Cost:
        """Time and memory of the stage so far."""
        durations = list(self._durations)
        durations = durations[1:] or durations
        return Cost(self._seconds, statistics.median(durations) if durations else 0.0, self._peak_memory)

    @property
    def _step_seconds(self) -> float | None:
        """Seconds per iteration, the mean of the last ones of this process; None after its first."""
        known = list(self._durations)[1:]  # the first is slower
        return statistics.fmean(known) if known else None

    def __iter__(self) -> Iterator[int]:
        """Yields the remaining iterations."""
        begun = time.perf_counter() - self._seconds
        reset_peak_memory(self.process.device)
        left = range(self.start, self.iterations)
        state = State(self.stage, self._position, self.start, self.iterations)
        tracing: AbstractContextManager[list[str]] = nullcontext([])
        if self._trace:
            tracing = trace_non_finite({**self._state, **self._state_of_rank})
        try:
            with (
                StopSignals() as stopped,
                tracing as self._origins,
                Progress(state, self.process, self._seconds) as progress,
            ):
                for iteration in left:
                    self._begin(iteration)
                    yield iteration
                    before, self._seconds = self._seconds, time.perf_counter() - begun
                    self._durations.append(self._seconds - before)
                    done = iteration + 1
                    for name, values in self._recorded.items():
                        self._values.setdefault(name, []).extend(values)
                    stop, interrupted = self.process.any_rank(bool(stopped), stopped.interrupted)
                    last = done == self.iterations
                    save = done % self._checkpoint_every == 0 or last or stop
                    for step in self._steps.take(wait=save):
                        self._report_skipped(step)
                    progress.advance(self._step_seconds, self.evaluated)
                    if done % self.log_every == 0 or last:
                        progress.report(self._seconds, self._write_scalars(done))
                    if save:
                        self._save(done)
                    if stop:
                        after = f"{done} of {self.iterations} iterations"
                        logger.info(f"{self.stage}: stopped after {after}, with a checkpoint")
                        raise SystemExit(STOPPED_EXIT_CODES[interrupted])
        finally:
            self._peak_memory = peak_memory(self.process.device)
            self.log.close()

    def record(self, values: Mapping[str, Tensor]) -> None:
        """Records scalars of this iteration; they are averaged and read when the curves are written."""
        for name, value in values.items():
            self._recorded.setdefault(name, []).append(value.detach())

    def step(self, applied: Tensor, images: Iterable[str] = (), overflowed: Tensor | None = None) -> None:
        """Reports the optimizer's step of this iteration.

        Args:
            applied: Scalar bool on the device, whether the step was applied; equal on all ranks.
            images: Names of the images of its batches, for the message about a skipped step.
            overflowed: `Optimization.overflowed`. Overflows are normal in float16: they have their own curve,
                are not logged and do not count as skipped.
        """
        if overflowed is not None:
            applied = applied | overflowed
            self.record({"overflowed": overflowed.float()})
        origin = self._origins[0] if self._origins else ""
        self._steps.put(_Step(self._iteration, list(images), self._recorded, origin), applied)

    def shows(self, iteration: int) -> bool:
        """Returns whether a picture of this iteration is due on this rank."""
        return self.process.is_main and iteration % self.picture_every == 0

    def picture(self, iteration: int, name: str, image: Tensor) -> None:
        """Logs a picture, (3, H, W) uint8, to TensorBoard."""
        self.log.picture(iteration, name, image)

    def _begin(self, iteration: int) -> None:
        self._iteration = iteration
        self._recorded = {}
        self._origins.clear()
        torch.manual_seed(derive_seed(self.seed, self.stage, iteration, self.process.rank))

    def _report_skipped(self, step: _Step) -> None:
        """Logs a skipped step; raises FloatingPointError if there are too many."""
        losses = [name for name, values in step.recorded.items() if not all_finite(values)]
        ranks = self.process.gather((losses, step.origin, step.images))
        message = "\n".join(
            f"{self.stage}: step {step.iteration + 1} was skipped: "
            f"{', '.join(losses) or 'a gradient'} is not finite{origin and f', first {origin}'}; "
            f"images: {', '.join(images) or 'unknown'}"
            # A non-finite loss of one rank makes the gradients of all non-finite.
            for losses, origin, images in [rank for rank in ranks if rank[0]] or ranks
        )
        logger.warning(message)
        self._skipped.append(step.iteration)
        while self._skipped[0] <= step.iteration - WINDOW:
            self._skipped.popleft()
        if len(self._skipped) > MAX_SKIPPED:
            raise FloatingPointError(
                f"{message}\n{self.stage}: stopped, {len(self._skipped)} of the last {WINDOW} steps were "
                f"skipped. The checkpoint in {self._path.parent} is older. If it is always the same images, "
                "inspect them; otherwise try a smaller learning rate or float32. trace_non_finite = true "
                "names the first module with non-finite numbers."
            )

    def _write_scalars(self, done: int) -> dict[str, float]:
        values = self._means()
        self._values.clear()
        if values:
            self.log.scalars(done, values)
        return values

    def _means(self) -> dict[str, float]:
        """Averages the finite values recorded since the last point of the curves."""
        names = sorted(self._values)
        if not names:
            return {}
        none = [torch.full((), torch.nan, device=self.process.device)]
        recorded = [torch.stack(self._values[name] or none).double() for name in names]
        sums = torch.stack([values.nan_to_num(0, 0, 0).sum() for values in recorded])
        counts = torch.stack([values.isfinite().sum() for values in recorded])
        means = all_reduce_sum(sums) / all_reduce_sum(counts)
        return {name: value for name, value in zip(names, means.tolist(), strict=True) if value == value}

    def _save(self, iteration: int) -> None:
        shared = {name: part.state_dict() for name, part in self._state.items()}
        # On every rank, so that no rank waits for one that failed.
        self._check_weights(iteration, shared)
        mine = {name: part.state_dict() for name, part in self._state_of_rank.items()}
        unlogged = {name: torch.stack(values) for name, values in self._values.items() if values}
        checkpoint = {
            "iteration": iteration,
            "seconds": self._seconds,
            "skipped": list(self._skipped),
            "state": shared,
            "state_of_ranks": self.process.gather(tree_map(_to_main_memory, mine)),
            "unlogged_of_ranks": self.process.gather(tree_map(_to_main_memory, unlogged)),
        }
        if self.process.is_main:
            save_checkpoint(self._path, checkpoint)
        self.process.barrier()

    def _check_weights(self, iteration: int, state: dict[str, dict[str, Any]]) -> None:
        # No run could continue from such a checkpoint.
        for name, part in state.items():
            module = self._state[name]
            # A buffer may be infinite on purpose, such as a mask of attention.
            buffers = {key for key, _ in module.named_buffers()} if isinstance(module, nn.Module) else ()
            for key, value in part.items():
                if not isinstance(value, Tensor):
                    continue
                if value.isnan().any() if key in buffers else not all_finite([value]):
                    raise FloatingPointError(
                        f"{self.stage}: {key} of the {name} is not finite after iteration {iteration}; the "
                        f"checkpoint in {self._path.parent} is older. Try a smaller learning rate or float32."
                    )

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self._path, self.process.device)
        starts = self.process.gather(0 if checkpoint is None else checkpoint["iteration"])
        if len(set(starts)) > 1:
            raise RuntimeError(
                f"{self.stage}: the processes read different checkpoints of {self._path.parent}, after "
                f"iterations {', '.join(map(str, starts))}: see whether all of them can read the files"
            )
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
                    f"{self.process.world_size}: start as many, or delete the file to restart the stage"
                )
        self.start = checkpoint["iteration"]
        self._seconds = checkpoint["seconds"]
        # Of another number of ranks, each takes its share. Checkpoints of earlier versions have none.
        unlogged = checkpoint.get("unlogged_of_ranks", [{}])
        mine = unlogged[self.process.rank :: self.process.world_size]
        self._values = {
            name: [value for rank in mine for value in rank.get(name, ())] for name in unlogged[0]
        }
        self._skipped = deque(checkpoint["skipped"])
        if 0 < self.start < self.iterations:
            logger.info(f"{self.stage}: resumes after iteration {self.start}")


def _to_main_memory(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
