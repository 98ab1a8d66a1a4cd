import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from app.tiny import cpsl, run
from cpsl import Segmenter
from cpsl.app import export
from cpsl.data import LabelSpace, whole_image
from cpsl.models import DeepLabV2

CLASSES = LabelSpace(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
SIZES = [(1, 32, 64), (3, 32, 64), (1, 33, 63), (2, 47, 50), (1, 16, 17)]


def segmenter(**options: bool) -> Segmenter:
    torch.manual_seed(0)
    colors = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    model = DeepLabV2(3, "resnet_tiny", 8, **colors, **options)
    # As in the networks of stride 8, the max-pool rounds up.
    model.backbone.maxpool = torch.nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    return Segmenter(model.eval(), CLASSES, (32, 64))


def check(run: export.Run) -> None:
    """Compares a program with the equations, in each size."""
    model = segmenter(output_norm=True).model
    for batch, height, width in SIZES:
        image = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
        with torch.no_grad():
            logits = model(image / 255).logits
        wanted = F.interpolate(logits, (height, width), mode="bilinear", align_corners=True)
        torch.testing.assert_close(run(image), wanted, atol=1e-5, rtol=1e-4)


def test_an_exported_program_has_the_outputs_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt2"
    export.export(replace(segmenter(output_norm=True), value_range=(0, 4095)), path)
    notes = {"classes": "", "palette": "", "full_size": "", "value_range": ""}
    check(torch.export.load(path, extra_files=notes).module())
    assert json.loads(notes["classes"]) == ["road", "sky", "car"]
    assert json.loads(notes["palette"]) == [list(color) for color in CLASSES.palette]
    assert json.loads(notes["full_size"]) == [32, 64]
    assert json.loads(notes["value_range"]) == [0, 4095]
    assert "differ by at most" in capsys.readouterr().out


def test_onnx_computes_what_the_model_does(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="ONNX needs cpsl[export]")
    pytest.importorskip("onnxscript", reason="ONNX needs cpsl[export]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs cpsl[export]")
    path = tmp_path / "model.onnx"
    export.export(segmenter(output_norm=True), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # all in one file
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    check(lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0]))
    # Fed as docs/inference.md says, it is what the library predicts.
    picture = torch.randint(0, 256, (3, 48, 80), dtype=torch.uint8)
    whole = whole_image(picture, (32, 64))
    (scores,) = session.run(None, {"image": whole[None].numpy()})
    wanted = segmenter(output_norm=True).predict(picture, size=(32, 64))
    torch.testing.assert_close(torch.from_numpy(scores[0]), wanted.scores, atol=1e-5, rtol=1e-4)
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ("image", ["batch", 3, "height", "width"])
    assert (logits.name, logits.shape) == ("logits", ["batch", 3, "height", "width"])
    notes = session.get_modelmeta().custom_metadata_map
    assert json.loads(notes["classes"]) == ["road", "sky", "car"]
    assert json.loads(notes["palette"]) == [list(color) for color in CLASSES.palette]
    assert json.loads(notes["full_size"]) == [32, 64]
    assert json.loads(notes["value_range"]) is None


@pytest.mark.parametrize("wrong", [lambda x: x + 0.01, lambda x: x * float("nan"), lambda x: x[:1]])
def test_a_file_with_other_outputs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: export.Run
) -> None:
    def write(module: export.ImageToLogits, example: object, path: Path, *_: object) -> export.Run:
        path.write_bytes(b"a program")
        return lambda image: wrong(module(image))

    monkeypatch.setattr(export, "_write_program", write)
    with pytest.raises(ValueError, match=r"model\.pt2"):
        export.export(segmenter(), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_refuses_other_sizes_is_replaced_by_one_of_fixed_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(
        module: export.ImageToLogits,
        example: torch.Tensor,
        path: Path,
        notes: object,
        dynamic: dict[int, str],
    ) -> export.Run:
        path.write_text(" ".join(dynamic.values()) or "fixed")

        def run(image: torch.Tensor) -> torch.Tensor:
            assert image.shape == example.shape  # as the guards of torch.export
            return module(image)

        return run

    monkeypatch.setattr(export, "_write_program", write)
    export.export(segmenter(), tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_text() == "fixed"
    printed = capsys.readouterr().out
    assert "with variable batch, height, width" in printed
    assert "not possible" in printed
    assert "with fixed sizes" in printed


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_the_command_after_an_export_works_as_printed(tmp_path: Path, suffix: str) -> None:
    if suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="ONNX needs cpsl[export]")
    segmenter(output_norm=True).save(tmp_path / "model.pt")
    path = tmp_path / f"it's a model{suffix}"
    ended = cpsl("export", "--weights", tmp_path / "model.pt", "--output", path)
    assert ended.code == 0, ended.text
    shown = run(*shlex.split(ended.text.splitlines()[-1]))
    assert shown.code == 0, shown.text
    assert all(f'"{name}"' in shown.text for name in CLASSES.names)


def test_a_folder_is_no_file_to_export_to(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    ended = cpsl("export", "--weights", "absent.pt", "--output", tmp_path / "model.onnx")
    assert ended.code == 2
    assert str(tmp_path / "model.onnx") in ended.text


def test_other_suffixes_and_unknown_sizes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.trt"):
        export.export(segmenter(), tmp_path / "model.trt")
    with pytest.raises(ValueError, match="--size"):
        export.export(Segmenter(segmenter().model, CLASSES, None), tmp_path / "model.pt2")


def test_missing_packages_of_onnx_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeError, match=r"onnxruntime.*cpsl\[export\]"):
        export.export(segmenter(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--output", "m.pt"], ("--output", ".onnx", ".pt2", ".pkl", "m.pt")),
        (["--output", "m"], ("--output", ".pkl")),
        (["--output", "m.onnx", "--clustering", "c.pt"], ("--clustering", ".onnx")),
        (["--output", "m.pt2", "--clustering", "c.pt"], ("--clustering", ".pt2")),
        (["--output", "m.pkl", "--size", "32", "64"], ("--size", ".pkl")),
    ],
)
def test_options_that_the_format_has_no_use_for_are_refused(
    options: list[str], named: tuple[str, ...]
) -> None:
    ended = cpsl("export", "--weights", "absent.pt", *options)
    assert ended.code == 2
    assert all(word in ended.text for word in named)
