import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cpsl.models.decoders import DAFormerDecoder, LightDecoder

Decoder = type[LightDecoder] | type[DAFormerDecoder]
DECODERS = [LightDecoder, DAFormerDecoder]
PYRAMID = {4: 6, 8: 5, 16: 4, 32: 3}
"""Channels by stride."""


def maps(strides: list[int], height: int, width: int, batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, PYRAMID[stride], height // stride, width // stride) for stride in strides]


def build(decoder: Decoder, strides: list[int], **arguments) -> nn.Module:
    torch.manual_seed(0)
    return decoder([PYRAMID[stride] for stride in strides], strides, 3, 8, **arguments)


@pytest.mark.parametrize("decoder", DECODERS)
@given(
    strides=st.lists(st.sampled_from([4, 8, 16, 32]), min_size=1, unique=True),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
)
@settings(max_examples=15)
def test_the_output_has_the_grid_of_the_finest_level_and_stride_8_at_most(
    decoder: Decoder, strides: list[int], rows: int, columns: int
) -> None:
    height, width = 32 * rows, 32 * columns
    output = build(decoder, strides)(maps(strides, height, width))
    stride = min(*strides, 8)
    assert output.logits.shape == (2, 3, height // stride, width // stride)
    assert output.features.shape == (2, 8, height // stride, width // stride)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("stride", "scale"), [(8, 1), (14, 2), (16, 2), (32, 4)])
def test_levels_of_one_stride_are_upsampled(decoder: Decoder, stride: int, scale: int) -> None:
    output = decoder([6] * 4, [stride] * 4, 3, 8)([torch.randn(1, 6, 3, 5) for _ in range(4)])
    assert output.logits.shape == (1, 3, 3 * scale, 5 * scale)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_logits_are_linear_in_signed_features(decoder: Decoder) -> None:
    model = build(decoder, [4, 8])
    output = model(maps([4, 8], 32, 64))
    expected = torch.einsum("kd,bdhw->bkhw", model.classify.weight[:, :, 0, 0], output.features)
    torch.testing.assert_close(output.logits, expected)
    features = model.eval()(maps([4, 8], 32, 64)).features.movedim(1, 0).flatten(1)
    assert ((features > 0).any(dim=1) & (features < 0).any(dim=1)).all()


@pytest.mark.parametrize("decoder", DECODERS)
def test_images_of_a_batch_are_independent(decoder: Decoder) -> None:
    model, levels = build(decoder, [4, 16], dropout=0.0), maps([4, 16], 32, 64)
    together, alone = model(levels), model([level[:1] for level in levels])
    torch.testing.assert_close(together.logits[:1], alone.logits)


@pytest.mark.parametrize("decoder", DECODERS)
def test_channels_of_the_features_are_dropped_in_training_alone(decoder: Decoder) -> None:
    model, levels = build(decoder, [4], dropout=0.5), maps([4], 32, 64)
    dropped = (model(levels).features == 0).flatten(2).all(dim=2)
    assert dropped.any()
    assert not dropped.all()
    assert not (model.eval()(levels).features == 0).any()


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_parameter_is_trained_and_classes_start_equally_likely(decoder: Decoder) -> None:
    model = build(decoder, [4, 8, 16, 32])
    logits = model(maps([4, 8, 16, 32], 64, 96)).logits
    assert logits.abs().max() < 0.5
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("decoder", DECODERS)
def test_coarse_levels_are_resized_as_centers_of_cells(decoder: Decoder) -> None:
    class Coarse(nn.Module):
        def forward(self, levels: list[Tensor]) -> Tensor:
            return levels[1]

    model = decoder((1, 1), (4, 16), 3, 8).eval()
    model.embed = nn.ModuleList([nn.Identity(), nn.Identity()])
    model.fuse, model.classify = Coarse(), nn.Identity()
    fine, coarse = ((torch.arange(64 // stride) + 0.5) * stride for stride in (4, 16))
    resized = model([fine.expand(1, 1, 16, 16), coarse.expand(1, 1, 4, 4)]).features
    torch.testing.assert_close(resized[..., 2:-2], fine.expand(1, 1, 16, 16)[..., 2:-2])


def test_the_decoder_of_daformer_has_the_published_size() -> None:
    # 3.7 M parameters for MiT-B5 (Hoyer et al., 2022); GroupNorm and BatchNorm have equally many.
    model = DAFormerDecoder((64, 128, 320, 512), (4, 8, 16, 32), 19)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(3.7e6, rel=0.02)


@pytest.mark.parametrize("decoder", DECODERS)
def test_invalid_arguments_are_named(decoder: Decoder) -> None:
    with pytest.raises(ValueError, match=r"\[4, 5\] and \[4\]"):
        decoder([4, 5], [4], 3)
    with pytest.raises(ValueError, match="feature_dim"):
        decoder([4], [4], 3, 0)
