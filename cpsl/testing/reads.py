"""Detection of operations that read values of the inputs and therefore synchronize with a GPU."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from cpsl.testing.batches import SegmentationBatch
from cpsl.testing.outcome import LEARNED, TEACHER, Loss, call, copy

READING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
DEVICE, IS_CPU = Tensor.device.__get__, Tensor.is_cpu.__get__  # type: ignore[attr-defined]
CPU = torch.device("cpu")
PRETENDED = torch.device("xpu")  # neither "cpu" nor "cuda", for which a loss may have kernels of its own
READING_METHODS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}


class Read(NamedTuple):
    """An operation that read a value.

    Attributes:
        operation: Name of the operation in torch.
        file: Name of the source file, without folders.
        line: Line number.
        source: Text of the line.
    """

    operation: str
    file: str
    line: int
    source: str


class RecordReads:
    """Records operations that read a value that depends on given tensors.

    Operations are computed as usual, on any device. A tensor depends on the given ones if an operation with
    such an input wrote its memory. Optionally, given tensors on the CPU report another device: CPU-only
    validation is then skipped, and constants that are moved to the device of the tensors must not be read.

    Args:
        tensors: The tensors whose values must not be read.
        pretend: Whether tensors on the CPU report another device.

    Example:
        >>> x = torch.rand(3)
        >>> with RecordReads([x]).active() as reads:
        ...     three = torch.arange(3).sum().item()  # a constant
        ...     total = x.sum().item()
        >>> tuple(read.operation for read in reads)
        ('item',)
    """

    def __init__(self, tensors: Sequence[Tensor], pretend: bool = False):
        self.pretend = pretend and all(x.device == CPU for x in tensors)
        self.reads: list[Read] = []
        # Kept alive, so that no other memory gets the same key.
        self._storages: dict[int, Any] = {}
        self._paused = False
        self.mark(tensors)

    @contextmanager
    def active(self) -> Iterator[list[Read]]:
        """Returns a context that yields the list of reads, which grows while the context is active."""
        with _Functions(self), _Operations(self):
            yield self.reads

    def mark(self, value: object) -> None:
        """Adds all tensors within a value to those that must not be read."""
        for storage in _storages(value):
            self._storages[storage._cdata] = storage

    def marked(self, value: object) -> bool:
        """Returns whether a value contains a tensor that must not be read."""
        return any(storage._cdata in self._storages for storage in _storages(value))

    def record(self, operation: str) -> None:
        """Records a read at the innermost line outside of torch and this file."""
        if not self._paused:
            ours = (str(Path(torch.__file__).parent), __file__)
            line = [line for line in traceback.extract_stack() if not line.filename.startswith(ours)][-1]
            self.reads.append(Read(operation, Path(line.filename).name, line.lineno or 0, line.line or ""))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Returns a context in which reads are not recorded."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before


class _Operations(TorchDispatchMode):
    """Tracks the dependence through all operations, including backward, and records reads."""

    def __init__(self, recorder: RecordReads):
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.recorder.marked((args, kwargs)):
            if _reads(func, args, kwargs):
                name = func._schema.name.removeprefix("aten::")
                self.recorder.record({"_local_scalar_dense": "item"}.get(name, name))
            self.recorder.mark(result)
            if func._schema.is_mutable:
                self.recorder.mark((args, kwargs))
        return result


class _Functions(TorchFunctionMode):
    """Records methods that bypass the dispatcher, and simulates the device."""

    def __init__(self, recorder: RecordReads):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, recorder = kwargs or {}, self.recorder
        if recorder.pretend and func in (DEVICE, IS_CPU) and recorder.marked(args[0]):
            return PRETENDED if func == DEVICE else False
        if func in READING_METHODS and recorder.marked(args[0]):
            recorder.record(func.__name__.strip("_"))
        classes = [*args[1:], kwargs.get("num_classes", -1)]
        if func is F.one_hot and classes[0] != -1:
            with recorder.paused():  # on CPUs only, it checks the largest index
                return func(*args, **kwargs)
        places = [kwargs.get("device")]
        if func is Tensor.to:
            places += [*args[1:], kwargs.get("other")]
        moves = recorder.pretend and any(_real(x) is not x or recorder.marked(x) for x in places)
        result = func(*tree_map(_real, args), **tree_map(_real, kwargs)) if moves else func(*args, **kwargs)
        if moves and isinstance(result, Tensor):
            if args and result is args[0]:
                result = result.clone()  # on a GPU it is another tensor, and the original may be read
            recorder.mark(result)
        return result


def _real(x: Any) -> Any:
    """Replaces the simulated device by the CPU."""
    return CPU if isinstance(x, str | torch.device) and x in (PRETENDED, PRETENDED.type) else x


def _reads(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Returns whether an operation synchronizes with a GPU for a value or for the shape of its result."""
    name = func._schema.name
    if name in ("aten::index", "aten::index_put", "aten::index_put_"):
        boolean = any(x.dtype in (torch.bool, torch.uint8) for x in args[1] if isinstance(x, Tensor))
        fills = name != "aten::index" and args[2].numel() == 1  # computed under the mask
        return boolean and not fills
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None
    return not READING_TAGS.isdisjoint(func.tags)


def _storages(value: object) -> list[Any]:
    """Returns the memory of all dense tensors within a value."""
    tensors = [x for x in tree_leaves(value) if isinstance(x, Tensor)]
    return [x.untyped_storage() for x in tensors if x.layout == torch.strided]


def recorded_reads(loss: Loss, batch: SegmentationBatch, pretend: bool) -> list[Read]:
    """Returns the reads of the second call of a loss and its gradients; constants are cached by then."""
    batch = copy(batch)
    leaves = {name: getattr(batch, name).requires_grad_() for name in LEARNED}
    given = [*leaves.values(), *(getattr(batch, name) for name in TEACHER), batch.labels]
    with RecordReads(given, pretend).active() as reads:
        for _ in range(2):
            reads.clear()
            # Cloned, because in-place operations fail on leaves but not on outputs of networks.
            value = call(loss, batch._replace(**{name: x.clone() for name, x in leaves.items()}))
            if value.requires_grad:
                torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return reads
