"""The teacher in half precision, around wrapped students, and of modules with other buffers."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DataParallel, DistributedDataParallel

from cpsl._internal.distributed import no_sync, unwrap
from cpsl.models import ExponentialMovingAverage
from cpsl.models.ema import update_moving_average

HALF = st.sampled_from([torch.bfloat16, torch.float16])
State = dict[str, Tensor]


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1, dtype=dtype), nn.BatchNorm2d(4, dtype=dtype))


def train(student: nn.Module, step: int) -> None:
    """Changes parameters and running statistics; the result is exact in all precisions."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for value in (*student.parameters(), student[1].running_mean, student[1].running_var):
            value.copy_(torch.randn(value.shape, generator=generator).bfloat16())
        student[1].num_batches_tracked += 1


def assert_equal(got: State, wanted: State) -> None:
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(got[key], value), key


@given(dtype=HALF, momentum=st.floats(0.5, 1), converted_at=st.integers(0, 5), seed=st.integers(0, 10_000))
def test_an_average_in_half_precision_is_the_rounded_average(
    dtype: torch.dtype, momentum: float, converted_at: int, seed: int
) -> None:
    torch.manual_seed(seed)
    student = network().bfloat16().float()
    exact, teacher = (ExponentialMovingAverage(student, momentum=momentum) for _ in range(2))
    for step in range(6):
        if step == converted_at:
            teacher.to(dtype)
        train(student, seed + step)
        learner = copy.deepcopy(student).to(dtype)
        # All values are those of bfloat16 within the range of float16.
        exact.update(learner)
        teacher.update(learner)
    for key, value in exact.module.state_dict().items():
        got = teacher.module.state_dict()[key]
        assert got.dtype == (dtype if value.is_floating_point() else value.dtype)
        assert torch.equal(got, value.to(got.dtype)), key
    # Converted back, nothing has been lost.
    assert_equal(teacher.float().state_dict(), exact.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_add_up(dtype: torch.dtype) -> None:
    student = nn.Linear(1, 1, bias=False).to(dtype)
    student.weight.data.fill_(1)
    teacher = ExponentialMovingAverage(student, momentum=0.999)
    student.weight.data.fill_(1.1)
    for _ in range(10_000):
        teacher.update(student)
    assert teacher.module.weight.dtype == dtype
    torch.testing.assert_close(teacher.module.weight, student.weight.detach())


@given(dtype=HALF, steps=st.integers(0, 3), seed=st.integers(0, 10_000))
def test_a_restored_or_copied_teacher_continues_exactly(dtype: torch.dtype, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    student = network().to(dtype)
    teacher, resumed = (ExponentialMovingAverage(copy.deepcopy(student)) for _ in range(2))
    for step in range(steps):
        train(student, step)
        teacher.update(student)
    copied = copy.deepcopy(teacher)
    # Inside of a larger module, as in a checkpoint of a method.
    nn.ModuleDict({"teacher": resumed}).load_state_dict(nn.ModuleDict({"teacher": teacher}).state_dict())
    assert_equal(resumed.state_dict(), teacher.state_dict())
    for step in range(steps, steps + 3):
        train(student, step)
        for each in (teacher, resumed, copied):
            each.update(student)
    assert_equal(resumed.state_dict(), teacher.state_dict())
    assert_equal(copied.state_dict(), teacher.state_dict())


def test_only_half_precision_needs_more_memory_and_entries() -> None:
    teacher = ExponentialMovingAverage(network())
    teacher.update(network())
    assert not teacher._float32
    assert set(teacher.state_dict()) == {f"module.{key}" for key in network().state_dict()}


def test_a_checkpoint_of_float32_fits_a_teacher_of_half_precision() -> None:
    student = network()
    teacher, other = ExponentialMovingAverage(student), ExponentialMovingAverage(network().bfloat16())
    other.update(network().bfloat16())
    other.load_state_dict(teacher.state_dict())
    other.update(student, momentum=1)
    for key, value in teacher.module.state_dict().items():
        assert torch.equal(other.module.state_dict()[key], value.to(other.module.state_dict()[key].dtype))
    # And the other way round.
    teacher.load_state_dict(other.state_dict())
    assert torch.equal(teacher.module[0].weight, other.module[0].weight.float())


def test_values_that_are_written_to_the_module_are_adopted() -> None:
    teacher = ExponentialMovingAverage(nn.Linear(1, 1, bias=False).bfloat16(), momentum=0.5)
    student = nn.Linear(1, 1, bias=False).bfloat16()
    teacher.update(student)
    teacher.module.weight.fill_(3)
    student.weight.data.fill_(1)
    teacher.update(student)
    assert teacher.module.weight.item() == 2


@given(dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), seed=st.integers(0, 10_000))
def test_an_update_that_is_not_applied_changes_nothing(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    student = network().to(dtype)
    teacher, unconditional = (ExponentialMovingAverage(student, momentum=0.9) for _ in range(2))
    teacher.module[0].bias.fill_(-0.0)
    unconditional.module[0].bias.fill_(-0.0)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    for step in range(2):
        train(student, seed + step)
        teacher.update(student, applied=torch.tensor(False))
        assert_equal(teacher.state_dict(), before)
        assert teacher.module[0].bias.signbit().equal(before["module.0.bias"].signbit())
        teacher.update(student, applied=torch.tensor(True))
        unconditional.update(student)
        assert_equal(teacher.state_dict(), unconditional.state_dict())
        before = {key: value.clone() for key, value in teacher.state_dict().items()}


def test_half_precision_does_not_synchronize_with_the_device() -> None:
    teacher = ExponentialMovingAverage(nn.Identity())
    with FakeTensorMode():  # its tensors have no values: reading one is an error
        student, teacher.module = network(torch.bfloat16), network(torch.bfloat16)
        for applied in (None, torch.ones(()) > 0):
            teacher.update(student, applied=applied)
        assert len(teacher.state_dict()) > len(student.state_dict())


def test_averages_in_half_precision_are_refused() -> None:
    with pytest.raises(TypeError, match=r"got torch\.bfloat16"):
        update_moving_average([torch.ones(1).bfloat16()], [torch.ones(1)])


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(3, 3).fill_diagonal_(-torch.inf))
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("flags", torch.ones(3, dtype=torch.bool))


@given(momentum=st.floats(0, 1), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_buffers_that_are_no_statistics_are_copied(momentum: float, dtype: torch.dtype) -> None:
    student = Masked().to(dtype)
    teacher = ExponentialMovingAverage(student, momentum=momentum)
    student.scale.fill_(7)
    student.mask.fill_(-torch.inf)
    student.flags.fill_(False)
    teacher.update(student)
    assert_equal(teacher.module.state_dict(), student.state_dict())


def test_the_average_of_a_spectral_norm_stays_normalized() -> None:
    torch.manual_seed(0)
    student = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    teacher = ExponentialMovingAverage(student, momentum=0.9)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        (student(torch.randn(16, 8)) - torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
        teacher.update(student)
    assert 0.9 < torch.linalg.matrix_norm(teacher.module.weight, 2) < 1.1


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    if torch.distributed.is_initialized():
        pytest.skip("another process group is in use")
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


Wrap = Callable[[nn.Module], nn.Module]
WRAPPERS: list[list[Wrap]] = [
    [],
    [DataParallel],
    [compiled],
    [DistributedDataParallel],
    [compiled, DistributedDataParallel],
    [DistributedDataParallel, compiled],
    [compiled, DataParallel, compiled],
]


@pytest.mark.parametrize("wrappers", WRAPPERS, ids=lambda each: "-".join(w.__name__ for w in each) or "none")
def test_students_may_be_wrapped(wrappers: list[Wrap], one_process: None) -> None:
    student = wrapped = nn.Linear(2, 2)
    for wrap in wrappers:
        wrapped = wrap(wrapped)
    assert unwrap(wrapped) is student
    teacher = ExponentialMovingAverage(wrapped)
    assert type(teacher.module) is nn.Linear
    student.weight.data.fill_(5)
    teacher.update(wrapped, momentum=0)
    assert torch.equal(teacher.module.weight, student.weight)

    averaging = [m for m in wrapped.modules() if isinstance(m, DistributedDataParallel)]
    with no_sync(wrapped):
        assert not any(module.require_backward_grad_sync for module in averaging)
        wrapped(torch.ones(1, 2)).sum().backward()
    assert all(module.require_backward_grad_sync for module in averaging)
    wrapped(torch.ones(1, 2)).sum().backward()
    assert torch.equal(student.weight.grad, torch.full((2, 2), 2.0))
    with no_sync(wrapped, when=False):
        assert all(module.require_backward_grad_sync for module in averaging)


def test_modules_that_look_like_wrappers_are_no_wrappers() -> None:
    module = nn.Sequential()
    module.module = nn.Linear(1, 1)
    assert unwrap(module) is module
