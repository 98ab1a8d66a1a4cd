"""Properties of all training steps, in the loops in which they are used."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from cpsl import PseudoLabelRectifier
from cpsl.methods import OnlineSelfLabeling, SelfLabeling
from cpsl.training import Optimization, start_process
from ranks import start_ranks
from training_steps import METHODS, batches, build, gradients, network, sgd

lightning = pytest.importorskip("lightning", reason="needs cpsl[lightning]")


def assert_equal(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_the_losses_sum_up_to_the_call(name: str) -> None:
    method, batch = build(name), batches(name)
    again = copy.deepcopy(method)
    torch.manual_seed(0)
    losses = list(method.losses(*batch))
    torch.manual_seed(0)
    total = again(*batch)
    assert len(losses) > 1
    assert all(loss.shape == () and loss > 0 for loss in losses)
    torch.testing.assert_close(sum(losses), total)


@pytest.mark.parametrize("name", METHODS)
def test_losses_one_by_one_give_the_gradient_of_their_sum(name: str) -> None:
    method, batch = build(name), batches(name)
    again = copy.deepcopy(method)
    torch.manual_seed(0)
    for loss in method.losses(*batch):
        loss.backward()
    torch.manual_seed(0)
    again(*batch).backward()
    torch.testing.assert_close(gradients(method), gradients(again), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_each_graph_is_freed_before_the_next_pass(name: str) -> None:
    """A loss is backpropagated once, and no later loss needs its graph."""
    method = build(name)
    for loss in method.losses(*batches(name)):
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


@pytest.mark.parametrize("name", METHODS)
def test_metrics_are_detached_and_supervision_fits_its_images(name: str) -> None:
    method = build(name)
    list(method.losses(*batches(name)))
    assert all(value.shape == () and not value.requires_grad for value in method.metrics.values())
    assert {"loss_source"} < method.metrics.keys()
    assert method.supervision is not None
    images, labels = method.supervision
    assert images.dtype == torch.uint8
    assert images.shape[0] == labels.shape[0]
    assert set(labels.unique().tolist()) <= {0, 1, 2, 255}


@pytest.mark.parametrize("name", METHODS)
def test_accumulated_gradients_are_the_mean_over_micro_batches(name: str) -> None:
    parts = [batches(name, seed) for seed in range(2)]
    method = build(name)
    optimization = Optimization(sgd(method), 10, accumulation=2)
    wanted: dict[str, Tensor] = {}
    alone = copy.deepcopy(method)
    for seed, batch in enumerate(parts):
        torch.manual_seed(seed)
        for loss in method.losses(*batch, last_micro_batch=seed == 1):
            optimization.backward(loss)
        torch.manual_seed(seed)
        alone.zero_grad()
        alone(*batch).backward()
        for key, gradient in gradients(alone).items():
            wanted[key] = wanted.get(key, 0) + gradient / 2
    torch.testing.assert_close(gradients(method), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_mixed_precision_gives_nearly_the_same_losses(name: str) -> None:
    batch, found = batches(name), []
    for enabled in (False, True):
        method = build(name)
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = method.losses(*batch)
            for loss in losses:
                assert loss.dtype == torch.float32
                with torch.autocast("cpu", enabled=False):
                    loss.backward()
        method.update()
        assert all(gradient.isfinite().all() for gradient in gradients(method).values())
        found.append({key: float(value) for key, value in method.metrics.items()})
    for key, value in found[0].items():
        # Pixels between two classes may change their label.
        assert found[1][key] == pytest.approx(value, rel=0.1, abs=0.02), key


def take_step(method: nn.Module, name: str) -> None:
    torch.manual_seed(0)
    for seed in range(2):  # micro-batches
        for loss in method.losses(*batches(name, seed), last_micro_batch=seed == 1):
            loss.backward()
    sgd(method).step()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("taken", [1, 2])
def test_losses_outside_of_a_step_are_no_part_of_it(name: str, taken: int) -> None:
    method = build(name).eval()  # any pass changes the statistics of BatchNorm
    alone = copy.deepcopy(method)
    with torch.no_grad():
        list(method.losses(*batches(name, 5)))
    abandoned = method.losses(*batches(name, 6))
    for _ in range(taken):
        next(abandoned)
    take_step(method, name)
    with torch.no_grad():
        method(*batches(name, 7))
    take_step(alone, name)
    for each in (method, alone):
        each.update()
    assert_equal(tensors(method), tensors(alone))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_can_be_copied_within_a_step(name: str) -> None:
    method = build(name)
    take_step(method, name)
    again = copy.deepcopy(method)
    for each in (method, again):
        each.update()
    assert_equal(tensors(method), tensors(again))


class Breaks(nn.Module):
    """A network whose logits are NaN on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.num_classes, self.feature_dim = self.network.num_classes, self.network.feature_dim
        self.align_corners, self.input_size = self.network.align_corners, self.network.input_size
        self.pretrained_layers = self.network.pretrained_layers
        self.broken = False

    def forward(self, images: Tensor) -> Any:
        output = self.network(images)
        return output._replace(logits=output.logits * torch.nan) if self.broken else output


def tensors(method: nn.Module) -> dict[str, Tensor]:
    """Returns the state of a method without its counter of steps, which includes skipped ones."""
    return {key: value for key, value in method.state_dict().items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("name", METHODS)
def test_a_skipped_step_changes_nothing_in_a_method(name: str) -> None:
    method = build(name)
    student = Breaks()
    setattr(method, "network" if name == "warmup" else "student", student)
    if isinstance(method, SelfLabeling | OnlineSelfLabeling):
        method.teacher = type(method.teacher)(student)
    optimization = Optimization(sgd(method), 10, module=method)
    for iteration in range(4):
        student.broken = iteration in (0, 2)
        before = copy.deepcopy((tensors(method), optimization.state_dict()["optimizers"]))
        for loss in method.losses(*batches(name, iteration)):
            optimization.backward(loss)
        applied = optimization.step()
        method.update(applied)
        assert bool(applied) != student.broken
        if student.broken:
            assert_equal(tensors(method), before[0])
            momentum = optimization.state_dict()["optimizers"][0]["state"]
            assert_equal(momentum, before[1][0]["state"])


class Module(lightning.LightningModule):
    """A method in Lightning, with automatic or manual optimization."""

    def __init__(self, name: str, automatic: bool) -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.method = build(name)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self)

    def on_train_start(self) -> None:
        torch.manual_seed(5)

    def training_step(self, batch: Any, number: int) -> Tensor | None:
        if self.automatic_optimization:
            loss: Tensor = self.method(*batch)
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        for each in self.method.losses(*batch):
            self.manual_backward(each)
        optimizer.step()
        return None

    def on_train_batch_end(self, *_: Any) -> None:
        self.method.update()


def plain_loop(name: str, steps: int = 2) -> dict[str, Tensor]:
    method = build(name)
    optimizer = sgd(method)
    torch.manual_seed(5)
    for step in range(steps):
        optimizer.zero_grad()
        for loss in method.losses(*batches(name, step)):
            loss.backward()
        optimizer.step()
        method.update()
    return method.state_dict()


@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_like_a_plain_loop(name: str, automatic: bool, tmp_path: Path) -> None:
    module = Module(name, automatic)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    module.train()  # Lightning keeps the mode, and the teacher its own
    data = [batches(name, step) for step in range(2)]
    loader = torch.utils.data.DataLoader(data, batch_size=None, shuffle=False)
    trainer.fit(module, loader)
    torch.testing.assert_close(module.method.state_dict(), plain_loop(name), rtol=1e-3, atol=1e-5)


def train_on_rank(name: str, rank: int, kind: str, process: Any) -> list[dict[str, Tensor]]:
    """Returns the weights after each of two steps.

    Each part of the method is wrapped, or the whole method, or the student by torch's own defaults.
    """
    learner: nn.Module
    if kind == "parts":
        learner = method = build(name, process.parallel)
    elif kind == "student":
        method = build(name)
        key = "network" if name == "warmup" else "student"
        setattr(method, key, DistributedDataParallel(getattr(method, key)))
        for part in ("discriminator", "clustering"):
            if hasattr(method, part):
                setattr(method, part, process.parallel(getattr(method, part)))
        learner = method
    else:
        method = build(name)
        learner = process.parallel(method)
    optimizer, weights = sgd(method), []
    for step in range(2):
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        batch = batches(name, 10 * step + rank)
        if kind == "method":
            learner(*batch).backward()
        else:
            for loss in method.losses(*batch):
                loss.backward()
        optimizer.step()
        method.update()
        weights.append(
            {
                key.replace(".module.", "."): value.detach().clone()
                for key, value in method.named_parameters()
                if "teacher" not in key
            }
        )
    return weights


KINDS = ("parts", "student", "method")


def on_ranks(rank: int, ranks: int, folder: Path) -> None:
    with start_process("cpu") as process:
        results = {
            f"{name} {kind}": train_on_rank(name, rank, kind, process)
            for name, kind in itertools.product(METHODS, KINDS)
        }
        torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[dict[str, Tensor]]]]:
    folder = tmp_path_factory.mktemp("ranks")
    start_ranks(on_ranks, 2, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_ranks_train_equal_weights(results: Any, name: str, kind: str) -> None:
    first, second = (rank[f"{name} {kind}"] for rank in results)
    assert_equal(first, second)
    # After the first step alone: rounding moves activations across the kink of a ReLU in later ones.
    torch.testing.assert_close(first[0], results[0][f"{name} parts"][0], rtol=1e-5, atol=1e-6)
    start = dict(build(name).named_parameters())
    moved = {key for key, value in first[1].items() if not torch.equal(value, start[key])}
    assert moved >= {key for key in start if key.endswith("weight") and "teacher" not in key}


@pytest.mark.parametrize("name", METHODS)
def test_a_network_that_returns_a_tensor_is_named(name: str) -> None:
    method = build(name)
    student = Breaks()
    student.network = nn.Conv2d(3, 3, 1)
    setattr(method, "network" if name == "warmup" else "student", student)
    with pytest.raises(TypeError, match=r"logits.*Tensor"):
        method(*batches(name))


@pytest.mark.parametrize("name", METHODS)
def test_a_network_without_the_protocol_is_refused_at_construction(name: str) -> None:
    method = build(name)
    parts = [part for part in method.children() if not isinstance(part, PseudoLabelRectifier)]
    with pytest.raises(TypeError, match=r"Conv2d.*num_classes.*align_corners.*from_module"):
        type(method)(nn.Conv2d(3, 3, 1), *parts[1:])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_in_true_half_precision(name: str, tmp_path: Path) -> None:
    """`bf16-true` converts network and batches; views, prototypes and averages stay exact."""
    module = Module(name, automatic=True)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision="bf16-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    views = [batches(name, step) for step in range(2)]
    trainer.fit(module, DataLoader(views, batch_size=None))
    state = tensors(module.method)
    assert all(value.isfinite().all() for value in state.values())
    half = {key for key, value in state.items() if value.dtype == torch.bfloat16}
    assert any(key.startswith(("network", "student")) for key in half)
    assert not any(key.startswith(("clustering", "initial", "teacher.float32")) for key in half)
    if isinstance(module.method, SelfLabeling | OnlineSelfLabeling):
        moved = (
            state["teacher.float32.head.classify.weight"]
            - build(name).state_dict()["teacher.module.head.classify.weight"]
        )
        assert 0 < moved.abs().max() < 0.01


@pytest.mark.parametrize("name", ["self_labeling", "distillation", "online"])
def test_deferred_views_are_named(name: str) -> None:
    source, target = batches(name)
    object.__setattr__(target, "strong", torch.empty(2, 0, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"apply_deferred"):
        build(name)(source, target)


@pytest.mark.parametrize("name", ["warmup", "self_labeling", "distillation", "online"])
def test_images_of_0_to_1_are_refused(name: str) -> None:
    """Divided by 255 they would be black."""
    source, target = batches(name)
    object.__setattr__(source, "image", source.image / 255)
    with pytest.raises(TypeError, match=r"uint8.*float32"):
        list(build(name).losses(source, target))
