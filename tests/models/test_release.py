import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cpsl.models import (
    Bottleneck,
    DeepLabV2,
    ResNet,
    load_release_checkpoint,
    read_release_checkpoint,
    save_release_checkpoint,
)
from cpsl.models.release import from_release, to_release


def formula_weights(shapes: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Weights of the golden vectors: a formula over the release's entries in order."""
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
    """The release keeps `bn_pretrain` at the end; the order of all else is that of the network."""
    return {key: state[key] for key in sorted(keys, key=lambda key: key.startswith("bn_pretrain"))}


@pytest.mark.parametrize("name", ["deeplabv2", "deeplabv2_bn_pretrain"])
def test_the_network_is_the_releases(golden, name: str) -> None:
    vectors = golden(name)
    backbone = ResNet(Bottleneck, (1, 1, 1, 1), output_norm=name.endswith("pretrain"))
    model = DeepLabV2(19, backbone).eval()
    shapes = to_release(model)
    weights = formula_weights(in_release_order(list(shapes), shapes), int(vectors["seed"]))
    model.load_state_dict(from_release(weights), strict=False)
    with torch.no_grad():
        output = model(torch.from_numpy(vectors["image"]))
    for got, wanted in ((output.logits, vectors["out"]), (output.features, vectors["feat"])):
        assert np.abs(got.numpy() - wanted).max() / np.abs(wanted).max() <= 1e-4


@pytest.mark.parametrize("bn_pretrain", [False, True])
def test_every_entry_has_its_name_shape_and_place(bn_pretrain: bool) -> None:
    from conftest import SHARED

    path = SHARED / "golden" / f"release_state_dict{'_bn_pretrain' * bn_pretrain}.json"
    if not path.exists():
        pytest.skip(f"the release's outputs are not here: {path}")
    wanted = json.loads(path.read_text())
    with torch.device("meta"):
        model = DeepLabV2(19, output_norm=bn_pretrain)
    model.mean, model.std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    state = to_release(model)
    got = {key: list(value.shape) for key, value in in_release_order(list(state), state).items()}
    assert list(got.items()) == list(wanted.items())


def write(path: Path, **more: object) -> DeepLabV2:
    model = DeepLabV2(16, feature_dim=8, output_norm=True).eval()
    content = {"ResNet101": {"model_state": to_release(model), "optimizer_state": {}}, **more}
    torch.save(content, path, _use_new_zipfile_serialization=bool(more))
    return model


def test_reads_networks_and_all_that_lies_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "stage1.pkl"
    model = write(
        path,
        FCDiscriminator={
            "model_state": {"conv1.weight": torch.ones(1), "conv1.bias": torch.ones(1)}
        },
        iter=np.int64(7),
        best_iou=np.float64(55.7),
        prototypes_ema=np.ones((16, 8), np.float32),
    )
    content = read_release_checkpoint(path)
    assert (content.iter, content.best_iou) == (7, 55.7)
    assert content.prototypes_ema is not None
    assert content.prototypes_ema.shape == (16, 8)
    assert content.discriminator is not None
    loaded = load_release_checkpoint(path, num_classes=16)
    image = torch.rand(1, 3, 33, 33)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image).logits, model(image).logits)


def test_reads_the_old_format_and_what_it_wrote_itself(tmp_path: Path) -> None:
    model = write(tmp_path / "old.pkl")
    old = load_release_checkpoint(tmp_path / "old.pkl", num_classes=16)
    save_release_checkpoint(tmp_path / "new.pkl", old, iteration=3)
    new = load_release_checkpoint(tmp_path / "new.pkl", num_classes=16)
    for key, value in model.state_dict().items():
        assert torch.equal(new.state_dict()[key], value)
    assert read_release_checkpoint(tmp_path / "new.pkl").iter == 3


def test_another_number_of_classes_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.pkl")
    with pytest.raises(ValueError, match="16 classes, not 19"):
        load_release_checkpoint(tmp_path / "a.pkl")


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
    "content", [b"", b"no pickle", pickle.dumps([1]), pickle.dumps({"iter": 1})]
)
def test_files_of_something_else_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_release_checkpoint(path)
