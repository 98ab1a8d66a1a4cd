from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from cpsl import Segmenter
from cpsl.data import LabelSpace
from cpsl.models import (
    DeepLabV2,
    Discriminator,
    ExponentialMovingAverage,
    build_network,
    freeze_batch_norm,
    load_backbone_weights,
)
from cpsl.models.ema import update_moving_average
from cpsl.models.resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet_tiny


class Encoder(nn.Module):
    """A custom encoder, as in the documentation."""

    channels, stride = 12, 16

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 16, stride=16)

    def forward(self, image: Tensor) -> Tensor:
        return self.patches(image)


@settings(max_examples=10)
@given(height=st.integers(33, 90), width=st.integers(33, 90))
def test_the_grid_rounds_up_like_that_of_the_authors_code(height: int, width: int) -> None:
    backbone = ResNet(Bottleneck, (1, 1, 1, 1), (4, 4, 4, 4)).eval()
    grid = backbone(torch.zeros(1, 3, height, width)).shape[2:]

    def along(size: int) -> int:
        size = (size - 1) // 2 + 1  # the first convolution
        size = -(-(size - 1) // 2) + 1  # the max-pool, rounding up
        return (size - 1) // 2 + 1  # the stride of layer2

    assert grid == (along(height), along(width))
    assert along(1024), along(2048) == (129, 257)


def test_custom_encoders_are_accepted() -> None:
    model = DeepLabV2(5, Encoder(), feature_dim=24).eval()
    output = model(torch.rand(2, 3, 64, 96))
    assert output.logits.shape == (2, 5, 4, 6)
    assert output.features.shape == (2, 24, 4, 6)


def test_invalid_backbones_and_images_are_named() -> None:
    with pytest.raises(ValueError, match="resnet101"):
        DeepLabV2(5, "resnet999")
    with pytest.raises(TypeError, match="channels absent"):
        DeepLabV2(5, nn.Conv2d(3, 4, 1))
    pair = Encoder()
    pair.stride = (16, 16)
    with pytest.raises(TypeError, match=r"stride \(16, 16\)"):
        DeepLabV2(5, pair)
    model = DeepLabV2(5, Encoder(), feature_dim=8)
    with pytest.raises(TypeError, match="divide by 255"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        model(torch.zeros(1, 4, 32, 32))


def test_backbones_with_other_outputs_are_named() -> None:
    model = DeepLabV2(5, Encoder(), feature_dim=8)
    model.backbone.patches = nn.Conv2d(3, 7, 16, stride=16)
    with pytest.raises(ValueError, match=r"backbone.*\(B, 12, h, w\), got shape \(1, 7, 2, 2\)"):
        model(torch.zeros(1, 3, 32, 32))
    model.backbone.forward = lambda image: [image]  # as encoders that return a pyramid
    with pytest.raises(TypeError, match="one tensor, got list"):
        model(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("stride", [4, 8])
def test_the_tiny_backbone_has_the_given_stride(stride: int) -> None:
    backbone = resnet_tiny(stride=stride).eval()
    rows, columns = backbone(torch.zeros(1, 3, 64, 128)).shape[2:]
    assert backbone.stride == stride
    assert rows - 64 // stride in (0, 1)
    assert columns - 128 // stride in (0, 1)
    with pytest.raises(ValueError, match="4 or 8, got 16"):
        resnet_tiny(stride=16)


def test_backbone_and_head_have_all_parameters() -> None:
    model = DeepLabV2(3, "resnet_tiny", 8)
    parts = [*model.backbone.parameters(), *model.head.parameters()]
    assert list(map(id, parts)) == list(map(id, model.parameters()))


@given(feature_dim=st.integers(1, 100))
@settings(max_examples=10)
def test_any_feature_dimension_is_accepted(feature_dim: int) -> None:
    model = DeepLabV2(2, Encoder(), feature_dim).eval()
    assert model(torch.rand(1, 3, 32, 32)).features.shape[1] == feature_dim


def test_every_argument_of_a_network_is_saved_with_it(tmp_path: Path) -> None:
    options: dict[str, Any] = {"feature_dim": 8, "dropout": 0.5, "output_norm": True, "dilations": (2, 3)}
    model = DeepLabV2(2, "resnet_tiny", **options, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    classes = LabelSpace(("a", "b"), ((0, 0, 0), (9, 9, 9)))
    Segmenter(model, classes, full_size=None).save(tmp_path / "model.pt")
    again = Segmenter.load(tmp_path / "model.pt").network
    assert repr(again) == repr(model.eval())
    assert again.spec == model.spec
    assert torch.equal(again.mean, model.mean)


def test_images_are_normalized_by_the_model() -> None:
    torch.manual_seed(0)
    plain = DeepLabV2(3, Encoder(), 8).eval()
    normalizing = DeepLabV2(3, Encoder(), 8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    weights = {k: v for k, v in plain.state_dict().items() if k not in ("mean", "std")}
    normalizing.load_state_dict(weights, strict=False)
    image = torch.rand(1, 3, 32, 32)
    mean, std = (normalizing.state_dict()[name] for name in ("mean", "std"))
    torch.testing.assert_close(normalizing(image).logits, plain((image - mean) / std).logits)


def test_runs_in_bfloat16_and_as_one_graph() -> None:
    torch.manual_seed(0)
    model = DeepLabV2(3, "resnet_tiny", 8).eval()
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        exact = model(image).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model(image).logits
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), exact, rtol=0.1, atol=0.05 * float(exact.abs().max()))
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(image).logits, exact)


def test_frozen_batch_norm_keeps_statistics_and_weights() -> None:
    model = DeepLabV2(3, "resnet_tiny", 8).train()
    freeze_batch_norm(model)
    before = {k: v.clone() for k, v in model.state_dict().items() if "bn" in k}
    model(torch.rand(2, 3, 32, 64)).logits.sum().backward()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items() if k in before)
    assert model.backbone.bn1.weight.grad is None
    assert model.backbone.conv1.weight.grad is not None


@pytest.mark.parametrize("wrapped", [False, True])
def test_new_layers_are_never_frozen(wrapped: bool) -> None:
    class Network(DeepLabV2):
        def __init__(self) -> None:
            super().__init__(3, "resnet_tiny", 8)
            self.head.add_module("norm", nn.BatchNorm2d(8))

    network = Network().train()
    freeze_batch_norm(nn.DataParallel(network) if wrapped else network)
    assert network.head.norm.training
    assert not network.backbone.bn1.training


def test_the_discriminator_halves_the_grid_four_times() -> None:
    discriminator = Discriminator(4, width=2)
    decision = discriminator(torch.rand(2, 4, 32, 48))
    assert decision.shape == (2, 1, 2, 3)
    widths = [m.out_channels for m in discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [2, 4, 8, 16, 1]
    with pytest.raises(ValueError, match=r"\(B, 4, H, W\), got shape \(2, 5, 32, 48\)"):
        discriminator(torch.rand(2, 5, 32, 48))


@given(momentum=st.floats(0, 1))
@example(momentum=0.0)
@example(momentum=1.0)
def test_the_teacher_is_the_moving_average(momentum: float) -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    teacher = ExponentialMovingAverage(student)
    before = {k: v.clone() for k, v in teacher.module.state_dict().items()}
    student.train()(torch.rand(2, 3, 4, 4))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    teacher.update(student, momentum)
    for key, value in teacher.module.state_dict().items():
        theirs = student.state_dict()[key]
        if value.is_floating_point():
            torch.testing.assert_close(value, before[key].lerp(theirs, 1 - momentum))
            if momentum in (0, 1):
                assert torch.equal(value, before[key] if momentum else theirs)
        else:
            assert torch.equal(value, theirs)


@given(momentum=st.floats(0, 1), seed=st.integers(0, 10_000))
def test_an_update_that_is_not_applied_changes_nothing(momentum: float, seed: int) -> None:
    torch.manual_seed(seed)
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    teacher, unconditional = (ExponentialMovingAverage(student) for _ in range(2))
    teacher.module[0].bias.fill_(-0.0)
    unconditional.load_state_dict(teacher.state_dict())
    student.train()(torch.rand(2, 3, 4, 4))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    teacher.update(student, momentum, torch.tensor(False))
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key])
        assert torch.equal(value.signbit(), before[key].signbit())
    teacher.update(student, momentum, torch.tensor(True))
    unconditional.update(student, momentum)
    for key, value in unconditional.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[key])


def test_an_update_that_is_not_applied_ignores_non_finite_students() -> None:
    student = nn.Linear(2, 2)
    teacher = ExponentialMovingAverage(student)
    before = teacher.module.weight.clone()
    student.weight.data.fill_(torch.nan)
    teacher.update(student, applied=torch.tensor(False))
    assert torch.equal(teacher.module.weight, before)


def test_the_momentum_of_the_constructor_is_the_default() -> None:
    student = nn.Linear(1, 1, bias=False)
    student.weight.data.zero_()
    teacher = ExponentialMovingAverage(student, momentum=0.75)
    student.weight.data.fill_(1)
    teacher.update(student)
    assert teacher.module.weight.item() == 0.25
    teacher.update(student, momentum=0)
    assert teacher.module.weight.item() == 1
    with pytest.raises(ValueError, match=r"momentum must lie in 0\.\.\.1, got 2"):
        ExponentialMovingAverage(student, momentum=2)


def test_the_teacher_is_called_like_its_student() -> None:
    student = DeepLabV2(3, Encoder(), 8).eval()
    teacher, image = ExponentialMovingAverage(student), torch.rand(1, 3, 32, 32)
    assert torch.equal(teacher(image=image).logits, student(image).logits)


def test_the_teacher_stays_in_evaluation_mode_and_needs_its_student() -> None:
    teacher = ExponentialMovingAverage(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    assert not teacher.train().module[1].training
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(ValueError, match="differ in their entry"):
        teacher.update(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="momentum"):
        teacher.update(nn.Sequential(nn.Linear(2, 2)), momentum=1.5)
    with pytest.raises(ValueError, match=r"entry 0\.weight"):
        teacher.update(nn.Sequential(nn.Linear(3, 2)))


def test_a_teacher_in_training_mode_stays_in_it() -> None:
    teacher = ExponentialMovingAverage(nn.Sequential(nn.Dropout()), mode="training").eval()
    assert teacher.module.training
    assert teacher.module[0].training
    with pytest.raises(ValueError, match='mode must be "evaluation" or "training"'):
        ExponentialMovingAverage(nn.Identity(), mode="train")


def test_state_dictionaries_restore_the_teacher() -> None:
    teacher, other = (ExponentialMovingAverage(nn.BatchNorm2d(2)) for _ in range(2))
    with torch.no_grad():
        teacher.module.weight.fill_(3)
    other.load_state_dict(teacher.state_dict())
    assert torch.equal(other.module.weight, teacher.module.weight)


def test_a_shared_tensor_is_averaged_once() -> None:
    student = nn.Module()
    student.a = student.b = nn.Linear(1, 1, bias=False)
    teacher = ExponentialMovingAverage(student)
    with torch.no_grad():
        student.a.weight.fill_(1)
        teacher.module.a.weight.fill_(0)
    teacher.update(student, momentum=0.75)
    assert teacher.module.b.weight.item() == 0.25


def test_the_teacher_does_not_synchronize_with_the_device() -> None:
    teacher = ExponentialMovingAverage(nn.Identity())
    with FakeTensorMode():  # its tensors have no values: reading one is an error
        student, teacher.module = (DeepLabV2(3, "resnet_tiny", 8) for _ in range(2))
        teacher.update(student)
        teacher.update(student, applied=torch.ones(()) > 0)
        with pytest.raises(DataDependentOutputException):
            teacher.module.mean.sum().item()


@pytest.fixture
def one_process(tmp_path) -> Iterator[None]:
    if torch.distributed.is_initialized():
        pytest.skip("another process group is in use")
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_distributed_student_is_unwrapped(one_process: None) -> None:
    student = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    teacher = ExponentialMovingAverage(student)
    assert isinstance(teacher.module, nn.Linear)
    with torch.no_grad():
        student.module.weight.fill_(5)
    teacher.update(student, momentum=0)
    assert torch.equal(teacher.module.weight, student.module.weight)


@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=4), momentum=st.floats(0, 1))
def test_lists_of_tensors_are_averaged(values: list[float], momentum: float) -> None:
    averages = [torch.ones(2) for _ in values]
    update_moving_average(averages, [torch.full((2,), v) for v in values], momentum)
    for average, value in zip(averages, values, strict=True):
        wanted = torch.full((2,), momentum + (1 - momentum) * value)
        torch.testing.assert_close(average, wanted, rtol=1e-5, atol=1e-5)


def test_missing_values_of_averages_are_named() -> None:
    with pytest.raises(ValueError, match="2 averages but 1 values"):
        update_moving_average([torch.zeros(1), torch.zeros(1)], [torch.zeros(1)])


@pytest.mark.parametrize("wrapped", [True, False])
def test_backbone_weights_are_loaded_from_a_file(tmp_path, wrapped: bool) -> None:
    donor, receiver = resnet_tiny(), resnet_tiny(output_norm=True)
    state = {f"module.{k}": v for k, v in donor.state_dict().items()}
    state["module.fc.weight"] = torch.ones(3)
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "weights.pth")
    load_backbone_weights(receiver, tmp_path / "weights.pth")
    assert torch.equal(receiver.conv1.weight, donor.conv1.weight)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "backbone.", "module.encoder_q."])
@pytest.mark.parametrize("name", ["deeplabv2:resnet_tiny", "lite0"])
def test_weights_of_wrappers_and_checkpoints_are_loaded(tmp_path, prefix: str, name: str) -> None:
    if name == "lite0":
        pytest.importorskip("timm")
    donor = build_network(name, 3, weights="random", feature_dim=8)
    encoder = donor.backbone if name != "lite0" else donor.body.encoder
    state = {prefix + key: value for key, value in encoder.state_dict().items()}
    torch.save(
        {"model": state, "best_acc": np.float64(77.5), "step": np.int64(9)}, tmp_path / "checkpoint.pth"
    )
    network = build_network(name, 3, weights=tmp_path / "checkpoint.pth", feature_dim=8)
    receiver = network.backbone if name != "lite0" else network.body.encoder
    assert all(torch.equal(value, receiver.state_dict()[key]) for key, value in encoder.state_dict().items())
    for value in state.values():
        value.fill_(torch.nan) if value.is_floating_point() else None
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=r"broken\.pth.*non-finite"):
        build_network(name, 3, weights=tmp_path / "broken.pth", feature_dim=8)


def test_weights_that_are_missing_or_do_not_fit_are_named(tmp_path) -> None:
    torch.save(resnet_tiny().state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(ValueError, match="does not fit"):
        load_backbone_weights(ResNet(BasicBlock, (2, 1, 1, 1)), tmp_path / "tiny.pth")
    wider = ResNet(BasicBlock, (1, 1, 1, 1), (16, 32, 64, 65))
    with pytest.raises(
        ValueError, match=r"another shape, such as layer4\.0\..*; the file has .* conv1\.weight"
    ):
        load_backbone_weights(wider, tmp_path / "tiny.pth")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_backbone_weights(resnet_tiny(), tmp_path / "nowhere.pth")
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(ValueError, match=r"page\.pth") as refused:
        load_backbone_weights(resnet_tiny(), tmp_path / "page.pth")
    assert "weights_only" not in str(refused.value)  # torch recommends to switch it off
    with pytest.raises(ValueError, match='no ImageNet weights for the backbone "resnet_tiny"'):
        load_backbone_weights(resnet_tiny(), "imagenet", "resnet_tiny")
    with pytest.raises(ValueError, match='"imagenet" needs the argument `name`'):
        load_backbone_weights(resnet_tiny(), "imagenet")


def test_weights_of_torchvision_fit_and_an_unreachable_server_is_named(monkeypatch) -> None:
    import torchvision

    donor = torchvision.models.resnet18(weights=None)
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: donor.state_dict()
    )
    backbone = resnet18()
    load_backbone_weights(backbone, "imagenet", "resnet18")
    assert torch.equal(backbone.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)

    def unreachable(*_, **__):
        raise OSError(113, "no route to host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", unreachable)
    with pytest.raises(ConnectionError, match=r"^(?!.*Errno).*resnet18\S*\.pth on another machine"):
        load_backbone_weights(backbone, "imagenet", "resnet18")
