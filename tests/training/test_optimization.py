"""Skipped steps change nothing; all other steps are those of PyTorch."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cpsl.clustering import ClassBalancedPrototypeClustering
from cpsl.models import ExponentialMovingAverage
from cpsl.training import Optimization, autocast, start_process
from cpsl.training.finite import all_finite
from ranks import start_ranks

STEPS = 8
BAD = (torch.nan, torch.inf, -torch.inf)

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "sgd without momentum": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01),
    "fused sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "fused nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, fused=True),
    "fused adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01, fused=True),
    "fused adamw": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
}
FUSED = [name for name in OPTIMIZERS if "fused" in name]
ON_DEVICES = [(name, "cpu") for name in OPTIMIZERS] + [
    pytest.param(name, "cuda", marks=pytest.mark.cuda) for name in FUSED
]


def network(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1, bias=False)).to(
        device
    )


def inputs(step: int, device: str = "cpu") -> Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(step)).to(device)


def loss_of(model: nn.Module, step: int, bad: float | None = None, in_gradient: bool = False):
    """Returns a loss; `bad` makes it non-finite, or only its gradient."""
    value = (model(inputs(step, next(model.parameters()).device.type)) - 1).square().mean()
    if bad is not None and in_gradient:
        value.register_hook(lambda gradient: gradient * bad)
    elif bad is not None:
        value = value * bad
    return value


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]})


def assert_equal(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("name", "device"), ON_DEVICES)
@pytest.mark.parametrize("in_gradient", [False, True])
@pytest.mark.parametrize("applied_before", [0, 2])
def test_a_skipped_step_changes_no_bit(
    name: str, device: str, in_gradient: bool, applied_before: int
) -> None:
    for bad in BAD:
        model = network(device)
        optimizer = OPTIMIZERS[name](model.parameters())
        optimization = Optimization(optimizer, STEPS, module=model)
        for step in range(applied_before):
            optimization.backward(loss_of(model, step))
            assert optimization.step()
        before, rate = state(model, optimizer), optimizer.param_groups[0]["lr"]
        optimization.backward(loss_of(model, 5, bad, in_gradient))
        assert not optimization.step()
        after = state(model, optimizer)
        if applied_before == 0 and name.startswith("fused adam"):
            # The first step, skipped or not, creates moments and counters of zero.
            assert not any(v.any() for s in after.pop("optimizer").values() for v in s.values())
            before.pop("optimizer")
        assert_equal(after, before)
        assert optimizer.param_groups[0]["lr"] < rate
        assert all(parameter.grad is None for parameter in model.parameters())


@given(
    name=st.sampled_from(sorted(OPTIMIZERS)),
    bad=st.dictionaries(st.integers(0, STEPS - 1), st.sampled_from(BAD)),
    in_gradient=st.booleans(),
)
def test_steps_are_those_of_a_plain_loop_without_the_bad_iterations(
    name: str, bad: dict[int, float], in_gradient: bool
) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    optimization = Optimization(optimizer, STEPS, power=0.9, module=model)
    plain = network()
    reference = OPTIMIZERS[name](plain.parameters())
    for step in range(STEPS):
        optimization.backward(loss_of(model, step, bad.get(step), in_gradient))
        assert bool(optimization.step()) == (step not in bad)
        if step not in bad:
            reference.zero_grad()
            loss_of(plain, step).backward()
            reference.step()
        # The learning rate follows the iterations.
        rate = optimizer.param_groups[0]["initial_lr"] * (1 - (step + 1) / STEPS) ** 0.9
        reference.param_groups[0]["lr"] = rate
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-7)
    if len(bad) == STEPS:
        assert_equal(model.state_dict(), network().state_dict())


def rates(optimization: Optimization, steps: int) -> list[list[float]]:
    """Takes steps; returns the learning rates of each parameter group in each of them."""
    (optimizer,) = optimization.optimizers
    weight, used = optimizer.param_groups[0]["params"][0], []
    for _ in range(steps):
        used.append([group["lr"] for group in optimizer.param_groups])
        optimization.backward(weight.sum())
        optimization.step()
    return used


def two_groups() -> torch.optim.SGD:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": rate} for rate in (0.1, 0.4)]
    return torch.optim.SGD(groups)


@given(iterations=st.integers(1, 20), warmup=st.integers(0, 25))
def test_learning_rates_rise_linearly_to_the_polynomial_schedule(iterations: int, warmup: int) -> None:
    plain = rates(Optimization(two_groups(), iterations), iterations)
    warm = rates(Optimization(two_groups(), iterations, warmup=warmup), iterations)
    for step in range(iterations):
        schedule = (1 - step / iterations) ** 0.9
        assert plain[step] == pytest.approx([0.1 * schedule, 0.4 * schedule])
        rise = min((step + 1) / (warmup + 1), 1)
        assert warm[step] == pytest.approx([rise * rate for rate in plain[step]])


@given(iterations=st.integers(2, 12), warmup=st.integers(0, 12), data=st.data())
def test_learning_rates_resume_within_the_warmup_and_after_it(
    iterations: int, warmup: int, data: st.DataObject
) -> None:
    stop = data.draw(st.integers(1, iterations - 1))
    undisturbed = rates(Optimization(two_groups(), iterations, warmup=warmup), iterations)
    first = Optimization(two_groups(), iterations, warmup=warmup)
    rates(first, stop)
    resumed = Optimization(two_groups(), iterations, warmup=warmup)
    resumed.load_state_dict(first.state_dict())
    assert rates(resumed, iterations - stop) == undisturbed[stop:]


@given(st.integers(1, 4), st.data())
def test_one_bad_micro_batch_skips_the_whole_step(parts: int, data: st.DataObject) -> None:
    wrong = data.draw(st.integers(0, parts - 1))
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    optimization = Optimization(optimizer, STEPS, accumulation=parts, module=model)
    before = state(model, optimizer)
    for part in range(parts):
        optimization.backward(loss_of(model, part, torch.nan if part == wrong else None))
    assert not optimization.step()
    assert_equal(state(model, optimizer), before)
    for part in range(parts):  # the bad loss belongs to its step alone
        optimization.backward(loss_of(model, part))
    assert optimization.step()


def test_a_bad_loss_with_a_finite_gradient_skips_the_step() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimization = Optimization(torch.optim.SGD([weight], 0.1), STEPS)
    optimization.backward(weight.sum() + torch.tensor(torch.inf))
    assert not optimization.step()
    assert_equal(weight.detach(), torch.ones(2))


@pytest.mark.parametrize("names", [("sgd", "adam"), ("fused sgd", "fused adam")])
@pytest.mark.parametrize("wrong", [0, 1])
def test_several_optimizers_skip_together(names: Sequence[str], wrong: int) -> None:
    models = [network(), network()]
    optimizers = [OPTIMIZERS[name](m.parameters()) for name, m in zip(names, models, strict=True)]
    optimization = Optimization(optimizers, STEPS, module=nn.ModuleList(models))
    for step, bad in enumerate((None, torch.nan, None)):
        before = [state(*pair) for pair in zip(models, optimizers, strict=True)]
        for number, model in enumerate(models):
            optimization.backward(loss_of(model, step, bad if number == wrong else None))
        assert bool(optimization.step()) == (bad is None)
        for pair, old in zip(zip(models, optimizers, strict=True), before, strict=True):
            if bad is not None:
                assert_equal(state(*pair), old)
            else:
                assert not torch.equal(pair[0].state_dict()["0.weight"], old["model"]["0.weight"])


@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_averages_and_bank_do_not_change_after_a_skipped_step(mode: Any) -> None:
    """Teacher, average of the prototypes, bank and class distribution stay bit-equal."""
    model = network()
    teacher = ExponentialMovingAverage(model, mode)
    clustering = ClassBalancedPrototypeClustering(3, 4, bank_size=16, samples_per_image=4)
    parts = nn.ModuleList([model, teacher, clustering])
    optimization = Optimization(
        OPTIMIZERS["sgd"]([p for p in parts.parameters() if p.requires_grad]), STEPS, module=parts
    )
    for bad in (torch.nan, None, torch.inf, None):
        before = copy.deepcopy(parts.state_dict())
        output = clustering(torch.randn(2, 4, 6, 6), torch.randint(3, (2, 6, 6)))
        for _ in range(2):
            teacher(inputs(3) * (1 if bad is None else bad))
        optimization.backward(output.loss + loss_of(model, 0, bad))
        applied = optimization.step()
        teacher.update(model, 0.5, applied)
        clustering.update(output, 0.5, applied)
        if bad is None:
            after = parts.state_dict()
            changed = {key for key, old in before.items() if not torch.equal(after[key], old)}
            assert changed >= {"0.0.weight", "0.1.running_mean", "0.1.num_batches_tracked"}
            assert changed >= {"1.module.0.weight", "1.module.1.running_mean"}
            assert changed >= {"2.prototypes", "2.ema_prototypes", "2.bank.features"}
            assert changed >= {"2.aligner.distribution"}
        else:
            assert_equal(parts.state_dict(), before)


def on_ranks(rank: int, ranks: int, folder: Path) -> None:
    with start_process("cpu") as process:
        results = {}
        for name in ("sgd", "fused adam"):
            model = network()
            learner = process.parallel(model)
            optimization = Optimization(OPTIMIZERS[name](model.parameters()), STEPS, module=model)
            applied = []
            for step in range(4):
                before = copy.deepcopy(model.state_dict())
                loss = (learner(inputs(10 * step + rank)) - 1).square().mean()
                # In step 1 only rank 1 has a bad loss, in step 2 only its value is bad.
                if rank == 1 and step in (1, 2):
                    loss = loss * torch.nan if step == 1 else loss + torch.tensor(torch.inf)
                optimization.backward(loss)
                applied.append(bool(optimization.step()))
                if not applied[-1]:
                    assert_equal(model.state_dict(), before)
            results[name] = applied, dict(model.named_parameters())
        torch.save(results, folder / f"{rank}.pt")


def test_ranks_skip_together(tmp_path: Path) -> None:
    start_ranks(on_ranks, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    for name in first:
        assert first[name][0] == second[name][0] == [True, False, False, True]
        assert_equal(first[name][1], second[name][1])


class TestFloat16:
    """The scale of the gradients is searched without a message and without a trace."""

    def train(self, optimization: Optimization, model: nn.Module, factor: float, step: int = 0) -> bool:
        with autocast(torch.device("cpu"), "float16"):
            output = model(inputs(step)).float()
        optimization.backward(output.square().mean() * factor)
        return bool(optimization.step())

    @pytest.mark.parametrize("name", ["sgd", "fused sgd", "adam", "fused adam"])
    def test_an_overflow_shrinks_the_scale_and_changes_nothing_else(self, name: str) -> None:
        model = network()
        optimizer = OPTIMIZERS[name](model.parameters())
        optimization = Optimization(optimizer, 100, precision="float16", module=model)
        before, scales, overflowed = copy.deepcopy(model.state_dict()), [], []
        for _ in range(10):
            scales.append(optimization.state_dict()["scaler"]["scale"])
            if self.train(optimization, model, factor=64.0):
                break
            overflowed.append(bool(optimization.overflowed))
            assert_equal(model.state_dict(), before)
        assert len(overflowed) > 0
        assert all(overflowed)
        assert scales == [65536 / 2**k for k in range(len(scales))]
        assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
        assert not optimization.overflowed

    def test_a_non_finite_loss_is_not_an_overflow(self) -> None:
        model = network()
        optimization = Optimization(
            OPTIMIZERS["sgd"](model.parameters()), 100, precision="float16", module=model
        )
        assert not self.train(optimization, model, torch.nan)
        assert not optimization.overflowed

    def test_the_search_ends_at_a_scale_of_one(self) -> None:
        weight = nn.Parameter(torch.ones(1))
        optimization = Optimization(torch.optim.SGD([weight], 0.1), 100, precision="float16")
        overflowed = []
        for _ in range(20):  # the gradient is bad at every scale
            loss = weight.sum()
            loss.register_hook(lambda gradient: gradient * torch.inf)
            optimization.backward(loss)
            assert not optimization.step()
            overflowed.append(bool(optimization.overflowed))
        assert overflowed == [True] * 16 + [False] * 4  # 65536 is 2^16

    def test_other_precisions_do_not_overflow(self) -> None:
        weight = nn.Parameter(torch.ones(1))
        optimization = Optimization(torch.optim.SGD([weight], 0.1), 100)
        optimization.backward(weight.sum() * torch.inf)
        assert not optimization.step()
        assert optimization.overflowed is None

    def test_the_scale_is_restored(self) -> None:
        model = network()
        options: dict[str, Any] = {"precision": "float16", "module": model}
        optimization = Optimization(OPTIMIZERS["sgd"](model.parameters()), 100, **options)
        for step in range(10):
            self.train(optimization, model, 64.0, step)
        saved = copy.deepcopy((model.state_dict(), optimization.state_dict()))
        assert saved[1]["scaler"]["scale"] < 65536
        wanted = [self.train(optimization, model, 64.0, step) for step in range(10, 15)]
        ended = copy.deepcopy((model.state_dict(), optimization.state_dict()))
        model.load_state_dict(saved[0])
        again = Optimization(OPTIMIZERS["sgd"](model.parameters()), 100, **options)
        again.load_state_dict(saved[1])
        assert [self.train(again, model, 64.0, step) for step in range(10, 15)] == wanted
        assert_equal((model.state_dict(), again.state_dict()), ended)


def test_a_fused_optimizer_resumes_from_a_state_without_momentum() -> None:
    """Such as that of a run whose first steps were skipped on a CPU."""
    results = []
    for name in ("sgd", "fused sgd"):
        model = network()
        skipped = Optimization(OPTIMIZERS["sgd"](model.parameters()), STEPS, module=model)
        skipped.backward(loss_of(model, 0, torch.nan))
        assert not skipped.step()
        resumed = Optimization(OPTIMIZERS["sgd"](model.parameters()), STEPS, module=model)
        resumed.optimizers[0].param_groups[0]["fused"] = "fused" in name
        state_dict = copy.deepcopy(skipped.state_dict())
        state_dict["optimizers"][0]["param_groups"][0]["fused"] = "fused" in name
        resumed.load_state_dict(state_dict)
        for step, bad in enumerate((torch.nan, None, None)):
            resumed.backward(loss_of(model, step, bad))
            resumed.step()
        results.append(model.state_dict())
    torch.testing.assert_close(results[0], results[1])


def test_optimizers_that_cannot_skip_are_named() -> None:
    weight = nn.Parameter(torch.ones(1))
    damped = torch.optim.SGD([weight], 0.1, momentum=0.9, dampening=0.5, fused=True)
    with pytest.raises(ValueError, match=r"dampening.*0\.5"):
        Optimization(damped, STEPS)


def test_a_cuda_optimizer_must_be_fused(fake_cuda: torch.device) -> None:
    weight = nn.Parameter(torch.ones(1, device=fake_cuda))
    with pytest.raises(ValueError, match=r"Adam.*fused=True"):
        Optimization(torch.optim.Adam([weight]), STEPS)


@given(st.lists(st.lists(st.floats(width=32) | st.sampled_from(BAD), max_size=4), min_size=1, max_size=4))
def test_finite_tensors_are_recognized(values: list[list[float]]) -> None:
    tensors = [torch.tensor(each, dtype=torch.float32) for each in values]
    assert bool(all_finite(tensors)) == all(bool(t.isfinite().all()) for t in tensors)


def test_integers_and_no_tensors_are_finite() -> None:
    assert all_finite([])
    assert all_finite([torch.arange(3), torch.empty(0)])
    assert not all_finite([torch.ones(1, dtype=torch.float16) * torch.inf, torch.ones(2)])


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["fused sgd", "fused adam"])
def test_a_step_on_a_gpu_does_not_synchronize(name: str) -> None:
    model = network("cuda")
    optimization = Optimization(OPTIMIZERS[name](model.parameters()), STEPS, module=model)
    batch = inputs(0, "cuda")
    bad = torch.tensor(torch.nan, device="cuda")
    for synchronizes in ("default", "error"):  # the first steps allocate
        torch.cuda.set_sync_debug_mode(synchronizes)
        try:
            for factor in (1, bad):
                optimization.backward(model(batch).square().mean() * factor)
                optimization.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("name", FUSED)
def test_a_skipped_first_step_on_a_gpu_does_not_change_the_next(name: str) -> None:
    results = []
    for losses in ((torch.nan, None, None), (None, None)):
        model = network("cuda")
        optimization = Optimization(OPTIMIZERS[name](model.parameters()), 100, power=0, module=model)
        for step, bad in zip(range(3 - len(losses), 3), losses, strict=True):
            optimization.backward(loss_of(model, step, bad))
            optimization.step()
        results.append(model.state_dict())
    assert_equal(results[0], results[1])
