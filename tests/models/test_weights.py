"""Files of weights: whatever is around the network, loading is exact or refused by name."""

import gzip
import io
import logging
import pickle
import random
import re
import tarfile
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cpsl.models import build_network
from cpsl.models.adapters.fitting import without_wrappers
from cpsl.models.adapters.weights import NESTED, load_weights, read_weights

PREFIXES = (
    "module.",
    "backbone.",
    "encoder.",
    "encoder_q.",
    "_orig_mod.",
    "model.",
    "student.",
    "teacher.",
    "net.",
)
BESIDE: dict[str, Any] = {
    "best_acc": np.float64(77.5),
    "epoch": 3,
    "step": np.int64(9),
    "history": np.arange(3.0),
    "args": Namespace(lr=0.1, output=Path("out")),
    "meta": {"classes": ("road", "sky"), "seed": None},
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
}


class Network(nn.Module):
    """An encoder and a head, with BatchNorm and a layer of the same name inside."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 4, 3),
                bn1=nn.BatchNorm2d(4),
                layer1=nn.ModuleDict({"conv1": nn.Conv2d(4, 4, 1)}),
            )
        )
        self.head = nn.Conv2d(4, 2, 1)


def donor() -> Network:
    network = Network()
    with torch.no_grad():
        for value in network.state_dict().values():
            value.copy_(torch.randn(value.shape) * 5)
    return network


def wrapped(state: dict[str, Tensor], prefixes: list[str], containers: list[str], beside: set[str]) -> Any:
    """Returns a checkpoint with a state dict under prefixes and in containers, beside other things."""
    content: Any = {"".join(prefixes) + key: value for key, value in state.items()}
    for container in containers:
        content = {**{name: BESIDE[name] for name in beside}, container: content}
    return content


checkpoints = {
    "prefixes": st.lists(st.sampled_from(PREFIXES), max_size=4),
    "containers": st.lists(st.sampled_from(NESTED), max_size=2),
    "beside": st.sets(st.sampled_from(sorted(BESIDE))),
    "whole": st.booleans(),
    "legacy": st.booleans(),
}


@given(**checkpoints)
@settings(max_examples=40, deadline=None)
def test_weights_in_any_wrapper_are_loaded_exactly(
    tmp_path_factory, prefixes: list[str], containers: list[str], beside: set[str], whole: bool, legacy: bool
) -> None:
    path, given, network = tmp_path_factory.getbasetemp() / "w.pth", donor(), Network()
    state = given.state_dict() if whole else given.backbone.state_dict()
    content = wrapped(state, prefixes, containers, beside)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    before = network.head.weight.clone()
    load_weights(network, path, "backbone")
    for key, value in given.state_dict().items():
        if whole or key.startswith("backbone."):
            assert torch.equal(network.state_dict()[key], value), key
    assert whole or torch.equal(network.head.weight, before)


@given(**checkpoints, broken=st.integers(0, 7), remove=st.booleans())
@settings(max_examples=30, deadline=None)
def test_incomplete_weights_are_refused_and_change_nothing(
    tmp_path_factory,
    prefixes: list[str],
    containers: list[str],
    beside: set[str],
    whole: bool,
    legacy: bool,
    broken: int,
    remove: bool,
) -> None:
    path, given, network = tmp_path_factory.getbasetemp() / "w.pth", donor(), Network()
    state = given.state_dict() if whole else given.backbone.state_dict()
    keys = [key for key in state if "head" not in key and "num_batches" not in key]
    key = keys[broken % len(keys)]
    if remove:
        del state[key]
    else:
        state[key] = torch.ones(9)
    torch.save(wrapped(state, prefixes, containers, beside), path, _use_new_zipfile_serialization=not legacy)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(str(path))) as refused:
        load_weights(network, path, "backbone")
    expected = f"backbone.{key.removeprefix('backbone.')}"
    assert expected in str(refused.value)
    assert "".join(prefixes) + next(iter(state)) in str(refused.value)  # a key that was found
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


@given(
    name=st.sampled_from(["zip.pth", "legacy.pth", "w.safetensors"]),
    start=st.binary(min_size=1, max_size=40),
    keep=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_a_corrupt_beginning_or_end_is_named(tmp_path_factory, name: str, start: bytes, keep: float) -> None:
    folder = tmp_path_factory.getbasetemp() / "corrupt"
    folder.mkdir(exist_ok=True)
    path, state = folder / name, donor().state_dict()
    if name == "w.safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "zip.pth")
    content = path.read_bytes()
    path.write_bytes((start + content[len(start) :])[: int(keep * len(content)) + 1])
    refusal, read = "", dict[str, Tensor]()
    try:
        read = read_weights(path)
    except ValueError as error:
        refusal = str(error)
    assert (name in refusal and "weights_only" not in refusal) or read.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in read.items())


ZIP = b"PK\x03\x04"


def tar_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def npz_of(**arrays: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


KINDS = {
    "empty": (b"", "empty"),
    "page": (b"\n<!DOCTYPE html>\n<html><body>Sign in", "HTML"),
    "page with a byte order mark": (b"\xef\xbb\xbf<HTML>", "HTML"),
    "XML": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "NoSuchKey"),
    "XHTML": (b'<?xml version="1.0"?>\n<!DOCTYPE html>\n<html xmlns="x">', "HTML"),
    "SVG": (b"<?xml version='1.0'?>\n<!-- <html> --><svg/>", "XML document that begins with <svg>"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 170202\n", "Git LFS"),
    "JSON": (b'{"error": "not found"}', "not found"),
    "text in UTF-16": ("Zugriff verweigert".encode("utf-16"), "Zugriff"),
    "long text": ("ä".encode() * 1000, "text"),
    "pickle of arrays": (pickle.dumps({"conv1.weight": np.ones(3)}), "torch.from_numpy"),
    "archive of arrays": (npz_of(conv1=np.ones(3)), "torch.from_numpy"),
    "gzip": (gzip.compress(b"weights"), "gzip"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "tar": (tar_of("checkpoint/weights.pth"), "checkpoint/weights.pth"),
    "tar of an old torch": (tar_of("sys_info", "pickle", "storages", "tensors"), "first versions of torch"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.6.0" + bytes(99), "ONNX"),
    "cut zip": (ZIP + bytes(99), "incomplete"),
    "noise": (random.Random(0).randbytes(999), "damaged"),
}


@pytest.mark.filterwarnings("error")  # a message is enough
@pytest.mark.parametrize(("content", "named"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_other_files_are_named_as_what_they_are(
    tmp_path: Path, content: bytes, named: str, suffix: str
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"w\{suffix} cannot be read") as refused:
        read_weights(path)
    assert named in str(refused.value)
    assert "weights_only" not in str(refused.value)


def test_a_pickled_network_is_named_with_its_class(tmp_path: Path) -> None:
    torch.save(Network(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth.*test_weights\.Network.*state_dict"):
        read_weights(tmp_path / "w.pth")
    (tmp_path / "p.pth").write_bytes(pickle.dumps(Network().state_dict()))
    with pytest.raises(ValueError, match=r"p\.pth"):
        read_weights(tmp_path / "p.pth")


def test_safetensors_are_recognized_by_their_content(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"a": torch.ones(3)}, tmp_path / "model.bin")
    assert torch.equal(read_weights(tmp_path / "model.bin")["a"], torch.ones(3))


def test_numbers_of_either_numpy_are_accepted(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(3)}, "best_acc": np.float64(1)}, tmp_path / "w.pth")
    modules = {b"numpy._core.multiarray", b"numpy.core.multiarray"}  # of NumPy 2 and 1
    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(tmp_path / "o.pth", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/data.pkl"):
                (used,) = (module for module in modules if module in content)
                (other,) = modules - {used}
                content = content.replace(used, other)
            new.writestr(name, content)
    assert torch.equal(read_weights(tmp_path / "o.pth")["a"], torch.ones(3))


@pytest.mark.parametrize("dtype", ["float16", ">f4", "float64"])
@pytest.mark.parametrize("zipped", [True, False])
def test_arrays_in_place_of_tensors_are_read(tmp_path: Path, dtype: str, zipped: bool) -> None:
    content = {"state_dict": {"a.weight": np.array([1, 2, 3.5], dtype)}, "epoch": 3}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert read_weights(tmp_path / "w.pth")["a.weight"].tolist() == [1, 2, 3.5]


def test_arrays_beside_tensors_are_no_weights(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(3), "history": np.array([0.5, np.nan])}, tmp_path / "w.pth")
    assert list(read_weights(tmp_path / "w.pth")) == ["a.weight"]


@pytest.mark.parametrize(
    ("used", "unused"),
    [
        ("module.encoder_q", "module.encoder_k"),
        ("teacher", "student"),
        ("base_encoder", "momentum_encoder"),
        ("ema_model", "model"),
        ("online_encoder", "target_encoder"),
        ("model", "imnet_model"),
        ("G_ema", "G"),
        ("ema_net", "net"),
        ("net_avg", "net"),
        ("swa-model", "model"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_of_several_networks_the_usual_one_is_used(
    tmp_path: Path, used: str, unused: str, nested: bool
) -> None:
    given, network = donor().backbone.state_dict(), Network()
    other = {key: -value for key, value in given.items()}
    state: dict[str, Any] = {unused: other, used: given}
    flat = {f"{name}.{key}": value for name, part in state.items() for key, value in part.items()}
    torch.save(state if nested and used != "model" else flat, tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth", "backbone")
    assert torch.equal(network.backbone.conv1.weight, given["conv1.weight"])
    if used != "online_encoder" and "_q" not in used:
        assert without_wrappers(flat).keys() in (given.keys(), flat.keys())


def test_an_entry_that_is_named_like_an_average_of_something_else_is_not_used(tmp_path: Path) -> None:
    given, network = donor().backbone.state_dict(), Network()
    torch.save({"model": given, "ema_loss": {"value": torch.ones(1)}}, tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth", "backbone")
    assert torch.equal(network.backbone.conv1.weight, given["conv1.weight"])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_other_numbers_in_place_of_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state, network = donor().state_dict(), Network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state["backbone.bn1.running_var"] = state["backbone.bn1.running_var"].to(dtype)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth.*backbone\.bn1\.running_var \(" + str(dtype)[6:]):
        load_weights(network, tmp_path / "w.pth", "backbone")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@given(st.integers(0, 6), st.sampled_from([0.0, -0.0]))
def test_zeros_alone_are_refused(tmp_path_factory: pytest.TempPathFactory, kept: int, zero: float) -> None:
    """One number other than zero is enough: a network may have layers of zeros."""
    path = tmp_path_factory.mktemp("zeros") / "w.pth"
    values = torch.full((7,), zero)
    torch.save({"weight": values, "bias": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"w\.pth.*zeros"):
        read_weights(path)
    values[kept] = 1e-30
    torch.save({"weight": values, "bias": torch.zeros(2)}, path)
    assert torch.equal(read_weights(path)["weight"], values)


def test_programs_are_told_from_weights(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt.*TorchScript.*state_dict") as refused:
        read_weights(tmp_path / "w.pt")
    assert "weights_only" not in str(refused.value)
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "w.pt2")
    with pytest.raises(ValueError, match=r"w\.pt2.*torch\.export.*state_dict"):
        read_weights(tmp_path / "w.pt2")


def test_equally_good_networks_are_refused(tmp_path: Path) -> None:
    state = {f"{name}.{key}": v for name in "ab" for key, v in donor().backbone.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth.*'a\.', 'b\.'"):
        load_weights(Network(), tmp_path / "w.pth", "backbone")
    same, network = donor().backbone.state_dict(), Network()
    torch.save({f"{name}.{key}": value for name in "ab" for key, value in same.items()}, tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth", "backbone")
    assert torch.equal(network.backbone.conv1.weight, same["conv1.weight"])


def test_how_many_tensors_were_filled_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("cpsl").propagate = True
    caplog.set_level(logging.INFO, "cpsl")
    state = {f"module.{key}": value for key, value in donor().backbone.state_dict().items()}
    torch.save({"teacher": state, "student": state}, tmp_path / "w.pth")
    load_weights(Network(), tmp_path / "w.pth", "backbone")
    entry, filled = caplog.messages
    assert entry.endswith("w.pth: reads its entry teacher, not student")
    assert "8 of 10 tensors of Network" in filled
    assert "module.*" in filled
    assert "head.weight, head.bias" in filled


def test_a_checkpoint_of_mmsegmentation_is_read(tmp_path: Path) -> None:
    network = build_network("deeplabv2:resnet_tiny", 3, weights="random", feature_dim=8)
    state = {f"backbone.{key}": value for key, value in network.backbone.state_dict().items()}
    state |= {
        "decode_head.conv_seg.weight": torch.ones(3, 4, 1, 1),
        "decode_head.conv_seg.bias": torch.ones(3),
    }
    meta = {"CLASSES": ("road",), "env_info": "Python: 3.8", "epoch": 1, "time": "Mon"}
    torch.save({"meta": meta, "state_dict": OrderedDict(state), "optimizer": {}}, tmp_path / "w.pth")
    loaded = build_network("deeplabv2:resnet_tiny", 3, weights=tmp_path / "w.pth", feature_dim=8)
    assert torch.equal(loaded.backbone.conv1.weight, network.backbone.conv1.weight)


def test_a_model_of_this_package_is_loaded_with_its_head_and_normalization(tmp_path: Path) -> None:
    from cpsl import Segmenter
    from cpsl.data import LabelSpace, class_colors

    arguments: dict[str, Any] = {"weights": "random", "feature_dim": 8}
    given = build_network("deeplabv2:resnet_tiny", 3, mean=(0, 0, 0), std=(1, 1, 1), **arguments)
    Segmenter(given, LabelSpace(("a", "b", "c"), class_colors("abc")), (32, 64)).save(tmp_path / "model.pt")
    arguments["weights"] = tmp_path / "model.pt"
    loaded = build_network("deeplabv2:resnet_tiny", 3, **arguments).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in given.state_dict().items())
    other = build_network("deeplabv2:resnet_tiny", 5, **arguments).state_dict()
    assert torch.equal(other["std"], torch.ones(3, 1, 1))
    assert torch.equal(other["backbone.conv1.weight"], given.state_dict()["backbone.conv1.weight"])


def test_a_file_of_a_backbone_alone_is_normalized_as_by_default(tmp_path: Path) -> None:
    given = build_network("deeplabv2:resnet_tiny", 3, weights="random", feature_dim=8)
    torch.save(given.backbone.state_dict(), tmp_path / "resnet.pth")
    loaded = build_network("deeplabv2:resnet_tiny", 3, weights=tmp_path / "resnet.pth", feature_dim=8)
    assert torch.equal(loaded.get_buffer("mean"), given.get_buffer("mean"))
    assert loaded.get_buffer("std").flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_a_checkpoint_of_the_authors_is_refused_as_weights(tmp_path: Path) -> None:
    torch.save({"ResNet101": {"model_state": {"conv1.weight": torch.ones(1)}}, "iter": 3}, tmp_path / "w.pkl")
    with pytest.raises(ValueError, match=r"w\.pkl.*init-from"):
        read_weights(tmp_path / "w.pkl")


def test_a_flipped_byte_of_a_tensor_is_noticed(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.arange(4096.0)}, tmp_path / "w.pth")
    data = bytearray((tmp_path / "w.pth").read_bytes())
    data[data.find(torch.arange(4096.0).numpy().tobytes()) + 8000] ^= 1
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.pth is damaged"):
        read_weights(tmp_path / "w.pth")
