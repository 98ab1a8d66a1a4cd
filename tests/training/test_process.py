"""Ranks and micro-batches train as one process does on everything."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from cpsl._internal.distributed import no_sync, unwrap
from cpsl.clustering import ClassBalancedPrototypeClustering
from cpsl.losses import (
    cross_entropy,
    discriminator_loss,
    distillation,
    generator_loss,
    prototype_consistency,
    symmetric_cross_entropy,
)
from cpsl.models import ExponentialMovingAverage, freeze_batch_norm
from cpsl.training import Optimization, Process, start_process
from ranks import start_ranks

K, IMAGES, STEPS = 5, 6, 4

Loss = Callable[[Tensor, Tensor], Tensor]


def by_similarity(logits: Tensor, labels: Tensor) -> Tensor:
    return prototype_consistency(logits.roll(1, dims=1).sigmoid(), logits.sigmoid(), labels != 255)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "symmetric_cross_entropy": symmetric_cross_entropy,
    "prototype_consistency": by_similarity,
    "distillation": lambda logits, _: distillation(logits, logits.roll(1, dims=1)),
    "generator_loss": lambda logits, _: generator_loss(logits[:, :1]),
    "discriminator_loss": lambda logits, _: discriminator_loss(logits[:, :1], logits[:, 1:2]),
}
MASKED = ("cross_entropy", "symmetric_cross_entropy", "prototype_consistency")


def batch(unequal: bool = False) -> tuple[Tensor, Tensor]:
    """Returns images and labels; the images have as many valid pixels as each other, or not."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(IMAGES, 3, 16, 16, generator=generator)
    labels = torch.randint(K, (IMAGES, 4, 4), generator=generator)
    labels[:, 0, :2] = 255
    if unequal:
        labels[:2, 1:] = 255
    return images, labels


def pixelwise() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8).eval(),
        nn.Conv2d(8, K, 1),
        nn.AvgPool2d(4),
    )


def mean_over_images(loss: Loss) -> Loss:
    """Gives each image the same weight, however many of its pixels are valid."""

    def mean(logits: Tensor, labels: Tensor) -> Tensor:
        pairs = zip(logits.split(1), labels.split(1), strict=True)
        return torch.stack([loss(*pair) for pair in pairs]).mean()

    return mean


def gradients(loss: Loss, images: Tensor, labels: Tensor, process: Process) -> list[Tensor]:
    network = process.parallel(pixelwise())
    loss(network(images), labels).backward()
    return [parameter.grad for parameter in network.parameters()]


class Collectives(TorchDispatchMode):
    """Records the sizes of all all-reduced tensors, those of DDP included."""

    def __init__(self) -> None:
        super().__init__()
        self.all_reduced: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and "allreduce" in func.__name__:
            self.all_reduced += [tensor.numel() for tensor in args[0]]
        return func(*args, **(kwargs or {}))


def train(process: Process, images: Tensor, labels: Tensor, parts: int) -> dict[str, Any]:
    """Trains a network and its average for some steps, each batch in `parts` micro-batches."""
    model = pixelwise().train()
    freeze_batch_norm(model)
    average = ExponentialMovingAverage(model)
    optimization = Optimization(
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), STEPS, accumulation=parts
    )
    learn, messages = process.parallel(model), []
    for step in range(STEPS):
        with Collectives() as counted:
            for part, (image, label) in enumerate(
                zip(images.roll(step, dims=3).chunk(parts), labels.chunk(parts), strict=True)
            ):
                # Two passes per part, as in the methods: only the last one of a step is averaged.
                with no_sync(learn):
                    optimization.backward(learn(image).square().mean())
                with no_sync(learn, when=part + 1 < parts):
                    optimization.backward(cross_entropy(learn(image), label))
        optimization.step()
        average.update(model, momentum=0.5)
        messages.append(counted.all_reduced)
    return {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "messages": messages,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def fill_banks(wrap: Callable[[nn.Module], nn.Module], rank: int) -> list[Tensor]:
    """Returns the first row of a bank after each of two steps; each rank fills it with its own features.

    It is filled before it is wrapped, as from a checkpoint, and refilled between the steps.
    """
    torch.manual_seed(0)
    clustering = ClassBalancedPrototypeClustering(2, 4, bank_size=40, samples_per_image=5)
    mine, found = torch.eye(4)[rank], []
    clustering.bank.push(mine.expand(40, 4))
    wrapped = wrap(clustering)
    for _ in range(2):
        wrapped(torch.rand(1, 4, 3, 3)).loss.backward()
        found.append(clustering.bank.features[0].clone())
        clustering.bank.push(mine.expand(40, 4))
    return found


def work(rank: int, ranks: int, folder: Path) -> None:
    with start_process("cpu") as process:
        assert (process.rank, process.world_size) == (rank, ranks)
        assert process.gather(f"rank {rank}") == [f"rank {other}" for other in range(ranks)]
        mine = slice(rank * IMAGES // ranks, (rank + 1) * IMAGES // ranks)
        results: dict[str, Any] = {}
        for unequal in (False, True):
            images, labels = batch(unequal)
            for name, loss in LOSSES.items():
                results[f"{name} {unequal}"] = gradients(loss, images[mine], labels[mine], process)
            for name in MASKED:
                results[f"{name} of images"] = gradients(
                    mean_over_images(LOSSES[name]), images[mine], labels[mine], process
                )
        images, labels = batch()
        for parts in {1, IMAGES // ranks}:
            results[f"trained {parts}"] = train(process, images[mine], labels[mine], parts)
        results["bank of plain DDP"] = fill_banks(DistributedDataParallel, rank)
        results["bank"] = fill_banks(process.parallel, rank)
        torch.save(results, folder / f"{rank}.pt")


Results = list[dict[str, Any]]
HERE = Process(torch.device("cpu"))


@pytest.fixture(scope="module", params=[2, 3])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Returns the results of two or three ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    start_ranks(work, request.param, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def assert_close(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_joined_batch(results: Results, name: str) -> None:
    """Losses over valid pixels only if the ranks have the same number of them."""
    for unequal in (False, True) if name not in MASKED else (False,):
        wanted = gradients(LOSSES[name], *batch(unequal), HERE)
        assert max(gradient.abs().max() for gradient in wanted) > 1e-4
        for rank in results:
            assert_close(rank[f"{name} {unequal}"], wanted)


@pytest.mark.parametrize("name", MASKED)
def test_ranks_have_the_same_weight_however_many_pixels_are_valid(results: Results, name: str) -> None:
    """With unequal numbers of valid pixels the gradient is the mean of the ranks' means."""
    ranks = len(results)

    def mean_over_ranks(logits: Tensor, labels: Tensor) -> Tensor:
        pairs = zip(logits.chunk(ranks), labels.chunk(ranks), strict=True)
        return torch.stack([LOSSES[name](*pair) for pair in pairs]).mean()

    wanted = gradients(mean_over_ranks, *batch(unequal=True), HERE)
    joined = gradients(LOSSES[name], *batch(unequal=True), HERE)
    assert (wanted[0] - joined[0]).abs().max() > 1e-4
    for rank in results:
        assert_close(rank[f"{name} True"], wanted)


@pytest.mark.parametrize("name", MASKED)
def test_a_mean_over_images_is_the_same_on_any_number_of_ranks(results: Results, name: str) -> None:
    wanted = gradients(mean_over_images(LOSSES[name]), *batch(unequal=True), HERE)
    for rank in results:
        assert_close(rank[f"{name} of images"], wanted)


def test_weights_and_averages_are_those_of_one_process(results: Results) -> None:
    alone = train(HERE, *batch(), parts=1)
    moved = alone["model"]["0.weight"] - pixelwise().state_dict()["0.weight"]
    assert moved.abs().max() > 1e-3
    for parts in {1, IMAGES // len(results)}:
        for rank in results:
            for key in ("model", "average"):
                torch.testing.assert_close(rank[f"trained {parts}"][key], alone[key], atol=1e-6, rtol=1e-4)


def test_accumulated_steps_are_one_step_of_a_larger_batch() -> None:
    alone = train(HERE, *batch(), parts=1)
    in_parts = train(HERE, *batch(), parts=3)
    torch.testing.assert_close(in_parts["model"], alone["model"], atol=1e-6, rtol=1e-4)


def test_a_step_all_reduces_its_gradients_once(results: Results) -> None:
    for parts in {1, IMAGES // len(results)}:
        for rank in results:
            trained = rank[f"trained {parts}"]
            for messages in trained["messages"]:
                assert sum(messages) == trained["parameters"]


def test_each_rank_keeps_its_own_bank(results: Results) -> None:
    for rank, result in enumerate(results):
        assert all(torch.equal(row, torch.eye(4)[rank]) for row in result["bank"])
        # Plain DDP broadcasts the bank of rank 0 in its constructor and in each forward pass.
        assert all(torch.equal(row, torch.eye(4)[0]) for row in result["bank of plain DDP"])


def test_one_process_needs_no_wrapper() -> None:
    with start_process("cpu") as process:
        network = pixelwise()
        assert process.parallel(network) is network
        assert unwrap(network) is network
        assert process.is_main
        assert process.gather(7) == [7]
        with no_sync(network):
            network(batch()[0]).sum().backward()
    assert network[0].weight.grad is not None


def refused(message: str, device: str = "cpu") -> None:
    with pytest.raises(RuntimeError, match=message), start_process(device):
        pass


@pytest.mark.parametrize("device", ["mps", "xpu", "xpu:0", "meta", "vulkan", "gpu", "", "cuda:x"])
def test_devices_of_other_kinds_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(device))), start_process(device):
        pass


def test_a_missing_device_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    refused("cuda:0", "cuda")


def test_missing_variables_of_torchrun_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    refused("srun started 4 tasks.*WORLD_SIZE")
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused("RANK and LOCAL_RANK")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    refused("cuda:1.*2 processes", "cuda:1")


def on_one_card(rank: int, ranks: int, folder: Path) -> None:
    dist.init_process_group("gloo")  # NCCL refuses two ranks on one card
    process = Process(torch.device("cuda", 0), rank, ranks)
    torch.save(normalized(process, rank, ranks), folder / f"{rank}.pt")
    dist.destroy_process_group()


def normalized(process: Process, rank: int, ranks: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    network = process.parallel(model.to(process.device))
    mine = batch()[0].chunk(ranks)[rank].to(process.device)
    network(mine).square().mean().backward()
    gradients = [parameter.grad.cpu() for parameter in network.parameters()]
    return {"gradients": gradients, "statistics": {k: v.cpu() for k, v in model[1].named_buffers()}}


@pytest.mark.cuda
def test_batch_statistics_are_those_of_the_joined_batch(tmp_path: Path) -> None:
    start_ranks(on_one_card, 2, tmp_path)
    alone = normalized(Process(torch.device("cuda", 0)), 0, 1)
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-4)
