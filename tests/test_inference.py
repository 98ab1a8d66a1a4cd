import copy
import re
import subprocess
import sys
import unicodedata
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor, nn

from cpsl import Segmenter
from cpsl.authors import save_release_checkpoint
from cpsl.data import CITYSCAPES_16, LabelSpace, whole_image
from cpsl.data.pictures import read_image
from cpsl.inference import Prediction
from cpsl.models import DeepLabV2, NetworkSpec, check_network
from small_networks import Colors, Overflowing, Patches, build_patches

ROAD_SKY = LabelSpace(("road", "sky"), ((128, 64, 128), (70, 130, 180)))
# The entries of files of version 0.
OLD = ("model", "classes", "palette")


def network(classes: int = 2, **options: Any) -> DeepLabV2:
    torch.manual_seed(0)
    return DeepLabV2(classes, "resnet_tiny", 8, **options)


def picture(height: int = 40, width: int = 72) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (1, 3, 5, 9), generator=generator).float()
    return F.interpolate(coarse, (height, width), mode="bilinear")[0].to(torch.uint8)


@st.composite
def label_spaces(draw: st.DrawFn) -> LabelSpace:
    characters = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])
    name = (
        st.text(characters, min_size=1)
        .map(lambda text: unicodedata.normalize("NFC", text).strip())
        .filter(bool)
    )
    names = draw(st.lists(name, min_size=1, max_size=6, unique=True))
    byte = st.integers(0, 255)
    colors = draw(st.lists(st.tuples(byte, byte, byte), min_size=len(names), max_size=len(names)))
    return LabelSpace(tuple(names), tuple(colors))


@given(
    label_spaces(),
    st.tuples(st.integers(1, 4096), st.integers(1, 4096)) | st.none(),
    st.booleans(),
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
)
def test_a_loaded_segmenter_equals_the_saved_one(
    classes: LabelSpace, size: tuple[int, int] | None, output_norm: bool, dilations: list[int]
) -> None:
    model = network(len(classes), output_norm=output_norm, dilations=dilations, mean=(0.1, 0.2, 0.3)).train()
    with TemporaryDirectory() as folder:
        Segmenter(model, classes, size).save(Path(folder, "model.pt"))
        again = Segmenter.load(Path(folder, "model.pt"))
    assert (again.classes, again.full_size) == (classes, size)
    assert model.training  # saving does not end training mode
    assert not again.model.training
    image = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(again.model(image).logits, model.eval()(image).logits)


def test_files_of_version_0_are_loaded(tmp_path: Path) -> None:
    Segmenter(network(output_norm=True), ROAD_SKY, (32, 64)).save(tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    arguments = {"backbone": "resnet_tiny", "feature_dim": 8, "output_norm": True}
    torch.save({key: content[key] for key in OLD} | arguments, tmp_path / "old.pt")
    new, old = Segmenter.load(tmp_path / "model.pt"), Segmenter.load(tmp_path / "old.pt")
    assert (old.classes, old.full_size) == (ROAD_SKY, None)
    with pytest.raises(ValueError, match=r"full_size=\(height, width\)"):
        old.predict(picture())
    sized = Segmenter.load(tmp_path / "old.pt", full_size=(32, 64))
    assert torch.equal(sized.predict(picture()).scores, new.predict(picture()).scores)


class Runs:
    def __reduce__(self) -> Any:
        return print, ("code of the file is run",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3, later than 2"),
        ({"network": None, "arguments": None}, r"model\.pt .* no network, no arguments"),
        ({"arguments": {"feature_dim": 16}}, "does not fit"),
        ({"arguments": {"color": 16}}, "no argument color"),
        ({"network": "deeplabv2:resnet_huge"}, "resnet_huge"),
        ({"extra": Runs()}, "holds a print"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "model.pt"
    Segmenter(network(), ROAD_SKY, (32, 64)).save(path)
    content = {**torch.load(path, weights_only=True), **change}
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    with pytest.raises(ValueError, match=message) as error:
        Segmenter.load(path)
    assert str(path) in str(error.value)
    assert capsys.readouterr().out == ""


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        Segmenter.load(tmp_path / "nowhere.pt")
    Segmenter(network(), ROAD_SKY, (32, 64)).save(tmp_path / "model.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "model.pt").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.pt cannot be read"):
        Segmenter.load(tmp_path / "cut.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds a list"):
        Segmenter.load(tmp_path / "list.pt")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as folder:
        Segmenter.load(tmp_path)
    assert "model.pt" in folder.value.__notes__[0]


def test_expected_classes_are_compared(tmp_path: Path) -> None:
    Segmenter(network(), ROAD_SKY, (32, 64)).save(tmp_path / "model.pt")
    assert Segmenter.load(tmp_path / "model.pt", ["road", "sky"]).classes == ROAD_SKY
    with pytest.raises(ValueError, match=r"road, sky.*sky, road"):
        Segmenter.load(tmp_path / "model.pt", ["sky", "road"])


def test_a_network_of_ones_own_is_rebuilt_by_its_function_only(tmp_path: Path) -> None:
    model, path = Patches(2), tmp_path / "model.pt"
    Segmenter(model, ROAD_SKY, (32, 64)).save(path)
    with pytest.raises(ValueError, match=r"model\.pt.*build="):
        Segmenter.load(path)
    again = Segmenter.load(path, build=build_patches).network
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    # The file names a function, which is not imported.
    content = {**torch.load(path, weights_only=True), "network": "antigravity:build"}
    torch.save(content, path)
    with pytest.raises(ValueError, match="antigravity:build"):
        Segmenter.load(path)
    assert "antigravity" not in sys.modules
    with pytest.raises(ValueError, match=r"encode\.weight"):
        Segmenter.load(path, build=partial(build_patches, features=4))


@pytest.mark.parametrize(
    ("library", "name", "arguments"),
    [
        ("transformers", "transformers:someone/repository", {}),
        ("transformers", "transformers:segformer", {"_attn_implementation": "someone/kernels"}),
        ("transformers", "transformers:segformer", {"auto_map": {"AutoConfig": "someone--code.Config"}}),
        (
            "transformers",
            "transformers:upernet",
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:someone/repository"}},
        ),
        ("timm", "timm:hf-hub:someone/repository", {}),
        ("timm", "timm:resnet18", {"checkpoint_path": "other.pth"}),
        ("segmentation_models_pytorch", "smp:Unet/tu-hf-hub:someone/repository", {}),
        ("segmentation_models_pytorch", "smp:Unet/tu-local-dir:folder", {}),
        ("segmentation_models_pytorch", "smp:Unet/tu-resnet18", {"checkpoint_path": "other.pth"}),
    ],
)
def test_a_file_causes_no_download_and_reads_no_other_file(
    library: str, name: str, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network is used"))
    content = {"version": 2, "model": {}, "network": name, "arguments": arguments}
    torch.save({**content, "classes": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]]}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt"):
        Segmenter.load(tmp_path / "model.pt")


@pytest.mark.parametrize("entry", ["model", "classes", "palette", "full_size", "arguments"])
def test_what_was_not_written_is_noticed_before_the_old_file_is_replaced(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    Segmenter(network(), ROAD_SKY, (32, 64)).save(path)
    before, save = path.read_bytes(), torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: save({**content, entry: {"a": 1}}, file))
    with pytest.raises(ValueError, match=entry):
        Segmenter(network(), ROAD_SKY, (32, 64)).save(path)
    assert [path.read_bytes()] == [file.read_bytes() for file in tmp_path.iterdir()] == [before]


def test_non_finite_weights_are_not_saved(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.head.classify.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"non-finite.*classify\.weight"):
        Segmenter(model, ROAD_SKY, (32, 64)).save(tmp_path / "model.pt")


def test_zeros_in_place_of_weights_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "model.pt"
    Segmenter(model, ROAD_SKY, (32, 64)).save(path)
    content = torch.load(path)
    content["model"] = {key: torch.zeros_like(value) for key, value in content["model"].items()}
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"model\.pt.*zeros"):
        Segmenter.load(path)
    model.load_state_dict(content["model"])
    with pytest.raises(ValueError, match="zeros"):
        Segmenter(model, ROAD_SKY, (32, 64)).save(tmp_path / "zeros.pt")


def test_a_network_that_its_name_does_not_describe_is_not_saved(tmp_path: Path) -> None:
    model = network()
    model.head.classify = torch.nn.Conv2d(8, 2, 1)  # with a bias
    with pytest.raises(ValueError, match=r"deeplabv2:resnet_tiny.*head\.classify\.bias"):
        Segmenter(model, ROAD_SKY, (32, 64)).save(tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())
    model = network()
    model.spec = NetworkSpec("deeplabv2:resnet_tiny", {"feature_dim": object()})
    with pytest.raises(ValueError, match="object"):
        Segmenter(model, ROAD_SKY, (32, 64)).save(tmp_path / "model.pt")


def wrapped(model: DeepLabV2) -> list[nn.Module]:
    part = copy.deepcopy(model)
    part.backbone = torch.compile(part.backbone, backend="eager")
    return [torch.compile(model), nn.DataParallel(model), nn.DataParallel(torch.compile(model)), part]


def test_whatever_is_saved_is_loaded(tmp_path: Path) -> None:
    """Scalars of NumPy, wrappers and infinite buffers."""
    space = LabelSpace((np.str_("road"), np.str_("sky")), np.arange(6, dtype=np.uint8).reshape(2, 3))
    for number, model in enumerate(wrapped(network(dilations=tuple(np.array([1, 2, 3, 4]))))):
        path = tmp_path / f"{number}.pt"
        Segmenter(model, space, tuple(np.array([32, 64]))).save(path)
        again = Segmenter.load(path)
        assert again.classes == LabelSpace(("road", "sky"), ((0, 1, 2), (3, 4, 5)))
        assert again.full_size == (32, 64)
        image = picture()
        expected = Segmenter(check_network(model).eval(), space, (32, 64)).predict(image).scores
        assert torch.equal(again.predict(image).scores, expected)


def test_other_networks_than_announced_are_refused() -> None:
    with pytest.raises(ValueError, match="3 classes, but 2"):
        Segmenter(network(3), ROAD_SKY, (32, 64))
    with pytest.raises(ValueError, match=r"full_size.*\(32, 0\)"):
        Segmenter(network(), ROAD_SKY, (32, 0))


@pytest.mark.parametrize("classes", [16, 2])
def test_checkpoints_of_the_authors_are_loaded(tmp_path: Path, classes: int) -> None:
    path = tmp_path / "stage3.pkl"
    torch.manual_seed(0)
    model = DeepLabV2(classes, "resnet101", 8)
    save_release_checkpoint(path, model)
    if classes == 2:
        with pytest.raises(ValueError, match="2 classes without names"):
            Segmenter.load(path)
        segmenter = Segmenter.load(path, ["road", "sky"])
        assert segmenter.classes.names == ("road", "sky")
    else:
        segmenter = Segmenter.load(path)
        assert segmenter.classes == CITYSCAPES_16
    assert segmenter.full_size == (1024, 2048)
    theirs = model.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in segmenter.model.state_dict().items())


@given(st.integers(1, 70), st.integers(1, 70), st.integers(4, 40), st.integers(4, 40))
def test_a_prediction_follows_its_definition(
    height: int, width: int, full_height: int, full_width: int
) -> None:
    model, image = Colors(5).eval(), picture()
    classes = LabelSpace(tuple("abcde"), ((0, 0, 0),) * 5)
    segmenter = Segmenter(model, classes, (full_height, full_width))
    prediction = segmenter.predict(image, size=(height, width))
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
        (full_width, full_height), Image.Resampling.BILINEAR
    )
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    with torch.no_grad():
        logits = model(pixels[None] / 255).logits
    wanted = F.interpolate(logits, (height, width), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(prediction.scores, wanted)
    assert (prediction.labels.dtype, prediction.labels.shape) == (torch.uint8, (height, width))
    chosen = prediction.probabilities.gather(0, prediction.labels[None].long())[0]
    torch.testing.assert_close(prediction.confidence, chosen)
    torch.testing.assert_close(chosen, wanted.softmax(dim=0).amax(dim=0))
    assert float(prediction.grid_confidence) == pytest.approx(
        float(logits.softmax(dim=1).amax(dim=1).mean()), abs=1e-5
    )


def test_views_are_averaged() -> None:
    space = LabelSpace(tuple("abcdef"), ((0, 0, 0),) * 6)
    segmenter = Segmenter(Colors(6).eval(), space, (64, 128))
    predict, image = segmenter.predict, picture(64, 128)
    once, mirrored = predict(image), predict(image.flip(-1), flip=True)
    both, scaled = predict(image, flip=True), predict(image, scales=(0.5, 1, 1.5), flip=True)
    for view in (mirrored, both, scaled):
        torch.testing.assert_close(view.scores.exp().sum(dim=0), torch.ones(64, 128))
    torch.testing.assert_close(mirrored.scores.flip(-1), both.scores)
    # The network gives the same for both views: only softmax and upsampling change their order.
    assert (both.probabilities - once.probabilities).abs().mean() < 0.02
    assert 0 < (scaled.probabilities - once.probabilities).abs().mean() < 0.1
    torch.testing.assert_close(both.grid_confidence, once.grid_confidence)
    mean = (predict(image, scales=(0.5, 0.5)).probabilities + predict(image, flip=True).probabilities) / 2
    twice = predict(image, scales=(0.5, 1), flip=True).probabilities
    assert (mean - twice).abs().max() < 0.05


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        (torch.zeros(3, 8, 8), {}, TypeError, "uint8.*torch.float32"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), {}, ValueError, r"\(3, H, W\), got shape \(8"),
        (torch.zeros(8, 8, dtype=torch.uint8), {}, ValueError, r"\(3, H, W\), got shape \(8"),
        (picture(), {"scales": (1, 0)}, ValueError, "scales"),
        (picture(), {"scales": ()}, ValueError, "scales"),
        *(
            (picture(), {"scales": (1, scale)}, ValueError, rf"scales.* {re.escape(str(scale))} of 32x64")
            for scale in (np.inf, np.nan, -1.0, 1e308, 1e5, 1e-9, 0.01)
        ),
        *((picture(), {"size": size}, ValueError, "size") for size in ((0, 5), (5, -1), (5,), (5, 5.5), ())),
        ("nowhere.png", {}, FileNotFoundError, "nowhere.png"),
    ],
)
def test_wrong_input_is_refused(
    image: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    segmenter = Segmenter(network().eval(), ROAD_SKY, (32, 64))
    with pytest.raises(error, match=message):
        segmenter.predict(image, **options)


@given(st.integers(0, 64), st.booleans(), st.sampled_from([(1.0,), (0.5, 1.0)]))
def test_scores_that_are_not_finite_are_refused(gray: int, flip: bool, scales: tuple[float, ...]) -> None:
    segmenter = Segmenter(Overflowing(2).eval(), ROAD_SKY, (32, 64))
    image = torch.full((3, 32, 64), 127, dtype=torch.uint8)
    image[:, :, gray:] = 255
    prediction = segmenter.predict(image, scales=scales, flip=flip, allow_non_finite=True)
    wrong = int(prediction.non_finite)
    assert wrong == int(prediction.scores.isnan().any(0).logical_or(prediction.scores[0].isinf()).sum())
    assert bool(wrong) == (gray < 64)
    if not wrong:
        segmenter.predict(image, scales=scales, flip=flip)
        return
    with pytest.raises(ValueError, match=f"{wrong} of 2048 .*float32"):
        segmenter.predict(image, scales=scales, flip=flip)


def test_a_class_of_probability_zero_is_finite() -> None:
    prediction = Prediction(torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, -torch.inf]]]), torch.ones(()))
    assert prediction.non_finite == 1


def test_a_network_in_training_mode_does_not_predict() -> None:
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        Segmenter(network().train(), ROAD_SKY, (32, 64)).predict(picture())


def test_an_image_file_is_rotated_by_its_exif_data(tmp_path: Path) -> None:
    segmenter = Segmenter(network().eval(), ROAD_SKY, (32, 64))
    stored = Image.fromarray(picture().permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    stored.save(tmp_path / "turned.png", exif=exif)
    stored.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    turned = segmenter.predict(tmp_path / "turned.png")
    assert turned.labels.shape == (72, 40)
    assert torch.equal(turned.scores, segmenter.predict(tmp_path / "upright.png").scores)


@pytest.mark.parametrize("kind", ["rotated", "16 bits", "palette", "alpha"])
def test_the_onnx_example_prepares_images_like_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    photo = Image.fromarray(picture().permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[0x0112] = 6 if kind == "rotated" else 1
    if kind == "16 bits":
        photo = Image.fromarray((np.asarray(photo.convert("L")).astype(np.uint16) << 8) + 77)
    elif kind != "rotated":
        photo = photo.convert("P" if kind == "palette" else "RGBA")
    photo.save("street.png", exif=exif)
    page = (Path(__file__).parents[1] / "docs" / "inference.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^picture = .*^image = [^\n]*", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"Image": Image, "ImageOps": ImageOps, "np": np, "height": 40, "width": 56}
    exec(example.replace("street.jpg", "street.png"), names)
    expected = whole_image(read_image(Path("street.png")), (40, 56))
    difference = torch.from_numpy(names["image"][0]).int() - expected.int()
    assert difference.abs().max() <= 1  # of rounding


def test_mixed_precision_is_the_callers_choice() -> None:
    segmenter = Segmenter(network().eval(), ROAD_SKY, (32, 64))
    plain = segmenter.predict(picture(), flip=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = segmenter.predict(picture(), flip=True)
    assert mixed.scores.dtype == torch.float32
    assert 0 < (mixed.probabilities - plain.probabilities).abs().max() < 0.05


@pytest.mark.cuda
def test_predictions_are_the_same_on_a_gpu() -> None:
    model = network().eval()
    here = Segmenter(model, ROAD_SKY, (32, 64)).predict(picture(), flip=True)
    there = Segmenter(model.to("cuda"), ROAD_SKY, (32, 64)).predict(picture(), flip=True)
    assert there.labels.device.type == "cuda"
    torch.testing.assert_close(there.probabilities.cpu(), here.probabilities, atol=1e-3, rtol=0)


def test_the_core_dependencies_are_enough() -> None:
    program = (
        "import sys; import cpsl; cpsl.Segmenter; "
        "print({'tyro', 'tensorboard', 'av', 'onnx', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
