"""A teacher network that is the moving average of a student."""

import copy
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from cpsl._internal.averaging import check_momentum, update_moving_average
from cpsl._internal.distributed import unwrap
from cpsl._internal.precision import Convert, is_low_precision, keep_precision

__all__ = ["ExponentialMovingAverage", "update_moving_average"]

M = TypeVar("M", bound=nn.Module)


class ExponentialMovingAverage(nn.Module, Generic[M]):
    """Averages a module's parameters over training (Tarvainen and Valpola, 2017).

        teacher ← momentum · teacher + (1 - momentum) · student

    The running statistics of normalization layers are averaged like parameters; all other buffers, such as
    masks and counters, are copied. The average is in evaluation mode, has no gradients, and is called like
    the student. For a module in half precision, whose small steps would be rounded to zero, the average is
    kept in float32 beside the module, and the module holds its rounded values.

    Args:
        student: Module to start from; copied, without DistributedDataParallel, DataParallel or
            `torch.compile` around it.
        mode: "evaluation", or "training" to keep the average in training mode, with dropout and batch
            statistics, as in the authors' code.
        momentum: 0...1; 0 copies the student, 1 keeps the average.

    Attributes:
        module: The average.

    Raises:
        ValueError: momentum is outside 0...1, or the mode is unknown.

    Example:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> teacher = ExponentialMovingAverage(student, momentum=0.9)
        >>> before = teacher.module.weight.clone()
        >>> with torch.no_grad(): student.weight += 1
        >>> teacher.update(student)
        >>> (teacher.module.weight - before).round(decimals=3)
        tensor([[0.1000]])
        >>> teacher(torch.ones(4, 1)).shape
        torch.Size([4, 1])
    """

    module: M
    __call__: M  # typed like the student

    def __init__(
        self,
        student: M | DistributedDataParallel | DataParallel[Any],
        mode: Literal["evaluation", "training"] = "evaluation",
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        if mode not in ("evaluation", "training"):
            raise ValueError(f'mode must be "evaluation" or "training", got {mode!r}')
        check_momentum(momentum)
        self.mode = mode
        self.momentum = momentum
        self._before: dict[str, Tensor] = {}
        self._float32: dict[str, Tensor] = {}  # averages that the module holds in half precision
        average: M = copy.deepcopy(unwrap(student))
        self.module = average.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "ExponentialMovingAverage[M]":
        """Keeps the mode of the constructor."""
        return super().train(self.mode == "training")

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Calls the average like the student."""
        if self.mode == "training" and not self._before:
            # Its passes change its statistics, which `update` restores if the step was not applied.
            self._before = {key: value.clone() for key, value in self.module.named_buffers()}
        return self.module(*inputs, **options)

    @torch.no_grad()
    def update(
        self, student: nn.Module, momentum: float | None = None, applied: Tensor | None = None
    ) -> None:
        """Moves the average towards the student; call it once per step, after the optimizer's.

        Args:
            student: The module of the constructor, wrapped or not.
            momentum: 0...1; None is that of the constructor.
            applied: Scalar bool on the device, whether the optimizer applied its step; False changes nothing.

        Raises:
            ValueError: momentum is outside 0...1, or student and average have different entries.
        """
        averages, values = _tensors(self.module), _tensors(unwrap(student))
        for key in averages | values:
            both = key in averages and key in values
            if not both or averages[key].shape != values[key].shape:
                raise ValueError(f"student and average differ in their entry {key}")
        if applied is not None:
            for key, value in self._before.items():
                averages[key].copy_(torch.where(applied, averages[key], value))
        self._before = {}
        momentum = self.momentum if momentum is None else momentum
        exact = self._exact_averages(averages)
        update_moving_average(list(exact.values()), [values[key] for key in exact], momentum, applied)
        in_place = exact.keys() - self._float32.keys()
        for key in averages.keys() - in_place:
            value = exact.get(key, values[key]).to(averages[key])
            if applied is not None:
                value = torch.where(applied, value, averages[key])
            averages[key].copy_(value)

    @torch.no_grad()
    def _exact_averages(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors of the module that are averages, or float32 ones in place of half precision."""
        exact = {}
        for key, value in tensors.items():
            if not value.is_floating_point():
                continue
            is_statistic = key.rpartition(".")[2] in ("running_mean", "running_var")
            if not (is_statistic or isinstance(value, nn.Parameter)):
                continue
            if is_low_precision(value):
                value = self._in_float32(key, value)
            else:
                self._float32.pop(key, None)  # the module itself has been converted back
            exact[key] = value
        return exact

    def _in_float32(self, key: str, rounded: Tensor) -> Tensor:
        if key not in self._float32:
            self._float32[key] = rounded.float()
        exact = self._float32[key] = self._float32[key].to(rounded.device)
        # Values that something else has written to the module, such as a loaded checkpoint, are adopted.
        return exact.copy_(torch.where(exact.to(rounded.dtype) == rounded, exact, rounded))

    @torch.no_grad()
    def _apply(self, fn: Convert, recurse: bool = True) -> "ExponentialMovingAverage[M]":
        # Detached, because conversions replace the data of parameters in place.
        before = {key: value.detach() for key, value in self._exact_averages(_tensors(self.module)).items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        were_low, self._float32 = self._float32.keys(), {}
        after = _tensors(self.module)
        for key, exact in before.items():
            if is_low_precision(after[key]):
                self._float32[key] = keep_precision(fn)(exact.float())
            elif key in were_low:
                after[key].copy_(exact)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._exact_averages(_tensors(self.module))
        destination.update({f"{prefix}float32.{key}": value for key, value in self._float32.items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *options: Any) -> None:
        start = f"{prefix}float32."
        saved = {key.removeprefix(start): state_dict[key] for key in state_dict if key.startswith(start)}
        own = _tensors(self.module)
        self._float32 = {
            key: value.to(own[key].device, torch.float32, copy=True)
            for key, value in saved.items()
            if key in own and is_low_precision(own[key])
        }
        others = {key: value for key, value in state_dict.items() if not key.startswith(start)}
        super()._load_from_state_dict(others, prefix, *options)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    # Not the state dictionary: it lists shared tensors twice, which would then be averaged twice.
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
