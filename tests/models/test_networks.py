import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cpsl.models import (
    BasicBlock,
    Bottleneck,
    DeepLabV2,
    Discriminator,
    ExponentialMovingAverage,
    ResNet,
    freeze_batch_norm,
    load_backbone_weights,
    resnet18,
    resnet_tiny,
)


class Encoder(nn.Module):
    """An encoder of one's own, as the documentation shows it."""

    channels, stride = 12, 16

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 16, stride=16)

    def forward(self, image: Tensor) -> Tensor:
        return self.patches(image)


@settings(max_examples=10)
@given(height=st.integers(33, 90), width=st.integers(33, 90))
def test_the_grid_rounds_up_as_the_releases_does(height: int, width: int) -> None:
    backbone = ResNet(Bottleneck, (1, 1, 1, 1), (4, 4, 4, 4)).eval()
    grid = backbone(torch.zeros(1, 3, height, width)).shape[2:]

    def along(size: int) -> int:
        size = (size - 1) // 2 + 1  # the first convolution
        size = -(-(size - 1) // 2) + 1  # the max-pool, rounding up
        return (size - 1) // 2 + 1  # the stride of layer2

    assert grid == (along(height), along(width))
    assert along(1024), along(2048) == (129, 257)


def test_another_encoder_is_a_few_lines() -> None:
    model = DeepLabV2(5, Encoder(), feature_dim=24).eval()
    output = model(torch.rand(2, 3, 64, 96))
    assert output.logits.shape == (2, 5, 4, 6)
    assert output.features.shape == (2, 24, 4, 6)


def test_wrong_backbones_and_images_are_named() -> None:
    with pytest.raises(ValueError, match="resnet101"):
        DeepLabV2(5, "resnet999")
    with pytest.raises(TypeError, match="channels"):
        DeepLabV2(5, nn.Conv2d(3, 4, 1))
    model = DeepLabV2(5, Encoder(), feature_dim=8)
    with pytest.raises(TypeError, match="divide by 255"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        model(torch.zeros(1, 4, 32, 32))


@given(feature_dim=st.integers(1, 100))
@settings(max_examples=10)
def test_any_feature_dimension_has_groups(feature_dim: int) -> None:
    model = DeepLabV2(2, Encoder(), feature_dim).eval()
    assert model(torch.rand(1, 3, 32, 32)).features.shape[1] == feature_dim


def test_mean_and_deviation_belong_to_the_model() -> None:
    torch.manual_seed(0)
    plain = DeepLabV2(3, Encoder(), 8).eval()
    normalising = DeepLabV2(3, Encoder(), 8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    weights = {k: v for k, v in plain.state_dict().items() if k not in ("mean", "std")}
    normalising.load_state_dict(weights, strict=False)
    image = torch.rand(1, 3, 32, 32)
    mean, std = (normalising.state_dict()[name] for name in ("mean", "std"))
    torch.testing.assert_close(normalising(image).logits, plain((image - mean) / std).logits)


def test_runs_in_bfloat16_and_as_one_graph() -> None:
    model = DeepLabV2(3, "resnet_tiny", 8).eval()
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        exact = model(image).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(image).logits.dtype == torch.bfloat16
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


def test_the_discriminator_halves_the_grid_four_times() -> None:
    judge = Discriminator(4, width=2)
    decision = judge(torch.rand(2, 4, 32, 48))
    assert decision.shape == (2, 1, 2, 3)
    widths = [m.out_channels for m in judge.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [2, 4, 8, 16, 1]


@given(momentum=st.floats(0, 1))
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
        else:
            assert torch.equal(value, theirs)


def test_the_teacher_stays_in_evaluation_and_follows_only_its_student() -> None:
    teacher = ExponentialMovingAverage(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    assert not teacher.train().module[1].training
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(ValueError, match="differ in their entry"):
        teacher.update(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="momentum"):
        teacher.update(nn.Sequential(nn.Linear(2, 2)), momentum=1.5)


@pytest.mark.parametrize("wrapped", [True, False])
def test_backbone_weights_come_from_a_file(tmp_path, wrapped: bool) -> None:
    donor, receiver = resnet_tiny(), resnet_tiny(output_norm=True)
    state = {f"module.{k}": v for k, v in donor.state_dict().items()}
    state["module.fc.weight"] = torch.ones(3)
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "weights.pth")
    load_backbone_weights(receiver, tmp_path / "weights.pth")
    assert torch.equal(receiver.conv1.weight, donor.conv1.weight)


def test_weights_that_do_not_fit_or_are_not_there_are_named(tmp_path) -> None:
    torch.save(resnet_tiny().state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(ValueError, match="does not fit"):
        load_backbone_weights(ResNet(BasicBlock, (2, 1, 1, 1)), tmp_path / "tiny.pth")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_backbone_weights(resnet_tiny(), tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="no ImageNet weights"):
        load_backbone_weights(resnet_tiny(), "imagenet", "resnet_tiny")


def test_torchvisions_weights_fit_and_an_unreachable_hub_says_what_to_do(monkeypatch) -> None:
    import torchvision

    donor = torchvision.models.resnet18(weights=None)
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: donor.state_dict()
    )
    backbone = resnet18()
    load_backbone_weights(backbone, "imagenet", "resnet18")
    assert torch.equal(backbone.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", unreachable)
    with pytest.raises(ConnectionError, match="another machine"):
        load_backbone_weights(backbone, "imagenet", "resnet18")
