import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import GOLDEN
from cpsl.authors import load_release_checkpoint, read_release_checkpoint, save_release_checkpoint
from cpsl.authors.checkpoints import from_release, to_release
from cpsl.models import DeepLabV2
from cpsl.models.resnet import Bottleneck, ResNet


def formula_weights(shapes: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Returns the weights of the golden vectors, a function of the order of the authors' entries."""
    state = {}
    for i, (key, value) in enumerate(shapes.items()):
        if not value.is_floating_point():
            state[key] = value
            continue
        x = torch.sin(0.7311 * torch.arange(value.numel(), dtype=torch.float64) + 1.317 * i + seed)
        x = x.reshape(value.shape)
        if key.endswith("running_var"):
            x = 1 + 0.25 * x
        elif value.ndim == 1 and key.endswith("weight"):
            x = 1 + 0.1 * x
        elif value.ndim == 1:
            x = 0.05 * x
        else:
            x = x * (2 / (value.numel() / value.shape[0])) ** 0.5
        state[key] = x.float()
    return state


def in_release_order(keys: list[str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the entries in the authors' order, which is that of the network but for `bn_pretrain`."""
    return {key: state[key] for key in sorted(keys, key=lambda key: key.startswith("bn_pretrain"))}


@pytest.mark.parametrize("name", ["deeplabv2", "deeplabv2_bn_pretrain"])
def test_the_network_computes_what_the_authors_network_computes(golden, name: str) -> None:
    vectors = golden(name)
    backbone = ResNet(Bottleneck, (1, 1, 1, 1), output_norm=name.endswith("pretrain"))
    model = DeepLabV2(19, backbone).eval()
    shapes = to_release(model)
    weights = formula_weights(in_release_order(list(shapes), shapes), int(vectors["seed"]))
    model.load_state_dict(from_release(weights), strict=False)
    generator = torch.Generator().manual_seed(int(vectors["seed"]))
    torch.rand(int(vectors["image_offset"]), generator=generator)
    with torch.no_grad():
        output = model(torch.rand(1, 3, 200, 264, generator=generator))
    logits, features = output.logits[..., ::2, ::2], output.features[:, ::8, ::2, ::2]
    for got, wanted in ((logits, vectors["out"]), (features, vectors["feat"])):
        assert np.abs(got.numpy() - wanted).max() / np.abs(wanted).max() <= 1e-4


@pytest.mark.parametrize("bn_pretrain", [False, True])
def test_names_shapes_and_order_of_entries_are_the_authors(bn_pretrain: bool) -> None:
    wanted = json.loads((GOLDEN / "state_dict.json").read_text())
    if not bn_pretrain:
        wanted = {k: shape for k, shape in wanted.items() if not k.startswith("bn_pretrain")}
    with torch.device("meta"):
        model = DeepLabV2(19, output_norm=bn_pretrain)
    model.mean, model.std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    state = to_release(model)
    got = {key: list(value.shape) for key, value in in_release_order(list(state), state).items()}
    assert list(got.items()) == list(wanted.items())


@pytest.fixture(scope="module")
def model() -> DeepLabV2:
    torch.manual_seed(0)
    return DeepLabV2(16, feature_dim=8, output_norm=True).eval()


def assert_same(a: DeepLabV2, b: DeepLabV2) -> None:
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items())


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_the_authors_code_are_read(tmp_path: Path, model: DeepLabV2, zipped: bool) -> None:
    path = tmp_path / "stage1.pkl"
    # As written by the authors' training script: one entry per network, each with prototypes that require a
    # gradient, and a NumPy scalar as score.
    prototypes = torch.rand(16, 8, requires_grad=True)
    discriminator = {"conv1.weight": torch.ones(1), "classifier.bias": torch.ones(1)}
    content = {
        "ResNet101": {"model_state": to_release(model), "prototypes_ema": prototypes},
        "FCDiscriminator": {"model_state": discriminator, "prototypes_ema": torch.zeros(16, 8)},
        "iter": 7,
        "best_iou": np.float64(0.557),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = read_release_checkpoint(path)
    assert (read.iter, read.best_iou) == (7, 0.557)
    assert read.prototypes_ema is not None
    assert not read.prototypes_ema.requires_grad
    assert torch.equal(read.prototypes_ema, prototypes.detach())
    assert read.discriminator is not None
    assert read.discriminator.keys() == discriminator.keys()
    assert_same(load_release_checkpoint(path, num_classes=16), model)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_scalars_of_numpy_1_and_2_are_read(tmp_path: Path, core: str) -> None:
    path = tmp_path / "numbers.pkl"
    state = {"conv1.weight": torch.zeros(1), "layer5.head.1.weight": torch.zeros(1)}
    content = {
        "ResNet101": {"model_state": state, "prototypes_ema": np.ones((16, 8), np.float32)},
        "iter": np.int64(7),
        "best_iou": np.float64(0.5),
    }
    torch.save(content, path, _use_new_zipfile_serialization=False)
    other = {"core": b"_core", "_core": b"core"}[core]
    raw = path.read_bytes()
    raw = raw.replace(b"numpy.%s.multiarray" % other, b"numpy.%s.multiarray" % core.encode())
    assert b"numpy.%s.multiarray\nscalar" % core.encode() in raw
    path.write_bytes(raw)
    read = read_release_checkpoint(path)
    assert (read.iter, read.best_iou) == (7, 0.5)
    assert read.prototypes_ema is not None
    assert torch.equal(read.prototypes_ema, torch.ones(16, 8))


def test_plain_states_of_parallel_networks_are_read(tmp_path: Path, model: DeepLabV2) -> None:
    path = tmp_path / "bare.pkl"
    torch.save({f"module.{key}": value for key, value in to_release(model).items()}, path)
    assert_same(load_release_checkpoint(path, num_classes=16), model)


def test_saved_checkpoints_are_read(tmp_path: Path, model: DeepLabV2) -> None:
    path = tmp_path / "own.pkl"
    save_release_checkpoint(path, model, iteration=3, prototypes_ema=torch.ones(16, 8))
    assert_same(load_release_checkpoint(path, num_classes=16), model)
    read = read_release_checkpoint(path)
    assert read.iter == 3
    assert read.prototypes_ema is not None
    assert torch.equal(read.prototypes_ema, torch.ones(16, 8))
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="mean must be 0"):
        to_release(DeepLabV2(2, "resnet_tiny", 8, mean=(0.5, 0.5, 0.5)))
    with pytest.raises(ValueError, match=r"is a ResNet-101; .* such as in conv1\.weight"):
        save_release_checkpoint(path, DeepLabV2(2, "resnet_tiny", 8))


def test_differences_of_the_network_are_named(tmp_path: Path, model: DeepLabV2) -> None:
    path = tmp_path / "other.pkl"
    state = to_release(model)

    def refused(state: dict[str, Tensor], why: str, num_classes: int = 16) -> None:
        torch.save({"ResNet101": {"model_state": state}}, path)
        with pytest.raises(ValueError, match=why):
            load_release_checkpoint(path, num_classes)

    bias, classifier = "layer5.conv2d_list.3.0.bias", "layer5.head.1.weight"
    refused(state, "16 classes, not 19", num_classes=19)
    refused({k: v for k, v in state.items() if k != bias}, rf"1 entries.*{re.escape(bias)}")
    refused({**state, bias: torch.zeros(9)}, rf"another shape.*{re.escape(bias)}")
    refused({**state, "layer6.weight": torch.zeros(1)}, r"1 are unexpected.*layer6\.weight")
    refused({k: v for k, v in state.items() if k != classifier}, f"no {re.escape(classifier)}")


class Hostile:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False, None])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, zipped: bool | None) -> None:
    Hostile.path = tmp_path / "owned"
    path = tmp_path / "evil.pkl"
    if zipped is None:
        path.write_bytes(pickle.dumps({"iter": Hostile()}))
    else:
        torch.save({"iter": Hostile()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_release_checkpoint(path)
    assert not Hostile.path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        b"<html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        pickle.dumps([1]),
        pickle.dumps({"iter": 1}),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as refused:
        read_release_checkpoint(path)
    assert "weights_only" not in str(refused.value)  # torch recommends to switch it off
