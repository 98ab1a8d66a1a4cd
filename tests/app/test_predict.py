import errno
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from app.tiny import cpsl, printed_commands
from cpsl import Segmenter
from cpsl.app import video
from cpsl.app.predict import Arguments, predict_all
from cpsl.app.prediction_files import Kind
from cpsl.data import LabelSpace
from cpsl.data.legends import is_legend
from cpsl.data.pictures import read_image
from cpsl.models import DeepLabV2, NetworkSpec
from cpsl.training import Precision, Process
from cpsl.visualize import overlay
from small_networks import Overflowing

PROCESS = Process(torch.device("cpu"))
CLASSES = LabelSpace(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))


def picture(number: int, height: int = 40, width: int = 72) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    coarse = torch.randint(0, 256, (1, 3, 5, 9), generator=generator).float()
    return F.interpolate(coarse, (height, width), mode="bilinear")[0].to(torch.uint8)


def save(path: Path, image: Tensor, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, **options)


def read(path: Path) -> Tensor:
    with Image.open(path) as stored:
        return torch.from_numpy(np.array(stored))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = DeepLabV2(3, "resnet_tiny", 8)
    with torch.no_grad():  # so that several classes are predicted
        model.head.classify.weight.mul_(100)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    Segmenter(model, CLASSES, (32, 64)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    save(folder / "a.png", picture(0))
    save(folder / "city" / "b.c.jpg", picture(1))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    save(folder / "city" / "upright.png", picture(2), exif=exif)
    return folder


def test_results_match_the_library(weights: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    kinds = ("labels", "colors", "overlay", "confidence")
    options = {"flip": True, "scales": (0.5, 1.0), "size": (48, 80)}
    arguments = Arguments(weights, photos, output, kinds, **options)
    assert predict_all(arguments, PROCESS) == []
    segmenter = Segmenter.load(weights, full_size=(48, 80))
    for path in (photos / "a.png", photos / "city" / "b.c.jpg", photos / "city" / "upright.png"):
        name = path.relative_to(photos).with_suffix("")
        wanted = segmenter.predict(path, flip=True, scales=(0.5, 1.0))
        assert len(wanted.labels.unique()) > 1
        file = output / "labels" / f"{name}.png"
        assert torch.equal(read(file), wanted.labels)
        with Image.open(file) as stored:
            palette = stored.getpalette()
        assert palette is not None
        assert palette[:9] == [value for color in CLASSES.palette for value in color]
        colors = torch.tensor(CLASSES.palette, dtype=torch.uint8)[wanted.labels.long()]
        assert torch.equal(read(output / "colors" / f"{name}.png"), colors)
        gray = read(output / "confidence" / f"{name}.png").float() / 255
        assert (gray - wanted.confidence).abs().max() <= 0.5 / 255 + 1e-6
        shown = read(output / "overlay" / f"{name}.jpg").float().permute(2, 0, 1)
        mixed = overlay(read_image(path), wanted.labels, CLASSES.palette).float()
        assert (shown - mixed).abs().mean() < 8  # it is a JPEG
    upright = read(output / "labels" / "city" / "upright.png")
    assert upright.shape == (72, 40)
    note = json.loads((output / "prediction.json").read_text())
    assert (note["classes"], note["size"]) == (["road", "sky", "car"], [48, 80])


def test_existing_results_are_kept(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, seen = tmp_path / "out", []
    whole = Segmenter.predict

    def predict(self: Segmenter, image: Tensor, **options: Any) -> Any:
        seen.append(tuple(image.shape[1:]))
        return whole(self, image, **options)

    monkeypatch.setattr(Segmenter, "predict", predict)
    arguments = Arguments(weights, photos, output)
    predict_all(arguments, PROCESS)
    assert len(seen) == 3
    seen.clear()
    predict_all(arguments, PROCESS)
    assert seen == []
    (output / "overlay" / "city" / "upright.jpg").unlink()
    save(photos / "new.png", picture(3, 20, 30))
    predict_all(arguments, PROCESS)
    assert seen == [(72, 40), (20, 30)]
    seen.clear()
    predict_all(Arguments(weights, photos, output, ("labels", "colors")), PROCESS)
    assert len(seen) == 4  # another kind of result
    assert not [path for path in output.rglob("*") if "partial" in path.name]


@pytest.mark.parametrize("preserve", [False, True])
def test_overwritten_inputs_are_predicted_again(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], preserve: bool
) -> None:
    output = tmp_path / "out"
    arguments = Arguments(weights, photos, output, ("labels", "confidence"))
    predict_all(arguments, PROCESS)
    assert capsys.readouterr().out == "3 predicted\n"
    old = read(output / "confidence" / "a.png")
    save(photos / "a.png", picture(9))
    if preserve:  # as a copy of an older file
        os.utime(photos / "a.png", (1000, 1000))
    (photos / "city" / "b.c.jpg").unlink()
    predict_all(arguments, PROCESS)
    said = "1 predicted (1 again, since the file changed), 1 kept from before; results of 1 file that is gone"
    assert capsys.readouterr().out.startswith(said)
    new = Segmenter.load(weights).predict(picture(9)).confidence
    assert (read(output / "confidence" / "a.png").float() / 255 - new).abs().max() < 0.01
    assert not torch.equal(read(output / "confidence" / "a.png"), old)
    with (output / "inputs.jsonl").open("a") as file:
        file.write('\n["city/b')  # of a killed process
    predict_all(arguments, PROCESS)
    assert capsys.readouterr().out.startswith("0 predicted, 2 kept")


def test_an_input_overwritten_by_a_damaged_file_has_no_result(
    weights: Path, photos: Path, tmp_path: Path
) -> None:
    arguments = Arguments(weights, photos, tmp_path / "out", get_args(Kind))
    predict_all(arguments, PROCESS)
    (photos / "a.png").write_bytes(b"no picture")
    for _ in range(2):
        assert len(predict_all(arguments, PROCESS)) == 1
        assert not list((tmp_path / "out").rglob("a.*"))


@pytest.mark.parametrize("frame", ["000000.png", "123456.jpg", "1000000.png"])
def test_frames_that_share_results_with_images_are_refused(
    weights: Path, photos: Path, tmp_path: Path, frame: str
) -> None:
    (photos / "city.mp4").touch()
    save(photos / "city" / frame, picture(0))
    with pytest.raises(ValueError, match=r"city\.mp4") as refused:
        predict_all(Arguments(weights, photos, tmp_path / "out"), PROCESS)
    assert frame in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_images_that_differ_in_their_suffix_are_refused(weights: Path, photos: Path, tmp_path: Path) -> None:
    save(photos / "a.jpg", picture(0))
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png|a\.png and .*a\.jpg") as refused:
        predict_all(Arguments(weights, photos, tmp_path / "out"), PROCESS)
    assert "pattern" not in str(refused.value)  # which the command has not


def test_a_photo_and_a_video_of_one_name_are_both_predicted(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av", reason="videos need cpsl[video]")
    video.write_video(photos / "a.MOV", [picture(1), picture(2)], Fraction(10))
    # Whose results lie beside and below those of frames.
    save(photos / "a" / "000001" / "b.png", picture(4))
    video.write_video(photos / "a" / "000000.mp4", [picture(3)], Fraction(10))
    arguments = Arguments(weights, photos, tmp_path / "out", get_args(Kind))
    assert predict_all(arguments, PROCESS) == []
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    of_overlay = {"a.jpg", "a.mp4", "a/000000.jpg", "a/000000.mp4", "a/000000/000000.jpg", "a/000001/b.jpg"}
    assert {f"overlay/{name}" for name in of_overlay} <= written
    assert "6 predicted" in capsys.readouterr().out
    predict_all(arguments, PROCESS)
    assert "0 predicted, 6 kept" in capsys.readouterr().out
    video.write_video(photos / "a.MOV", [picture(5)], Fraction(10))
    predict_all(arguments, PROCESS)
    assert "1 predicted (1 again, since the file changed), 5 kept" in capsys.readouterr().out
    left = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    of_frame = {f"{kind}/a/000001" for kind in get_args(Kind)}
    assert {name.rpartition(".")[0] for name in written - left} == of_frame


@pytest.mark.parametrize("size", [(2, 65_501), (65_501, 2), (2, 65_500)])
def test_overlays_of_any_size_are_written(
    weights: Path, tmp_path: Path, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "photos" / "wide.png", picture(0, *size))
    save(tmp_path / "photos" / "z.png", picture(1))
    arguments = Arguments(weights, tmp_path / "photos", tmp_path / "out")
    assert predict_all(arguments, PROCESS) == []
    name = "wide.png" if max(size) > 65_500 else "wide.jpg"
    assert {path.name for path in (tmp_path / "out" / "overlay").iterdir()} == {name, "z.jpg"}
    with Image.open(tmp_path / "out" / "overlay" / name) as shown:
        assert shown.size == size[::-1]
    predict_all(arguments, PROCESS)
    assert "0 predicted, 2 kept" in capsys.readouterr().out
    save(tmp_path / "photos" / "wide.png", picture(2))
    predict_all(arguments, PROCESS)
    assert {path.name for path in (tmp_path / "out" / "overlay").iterdir()} == {"wide.jpg", "z.jpg"}


def test_a_replaced_video_is_predicted_again(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av", reason="videos need cpsl[video]")
    path, output = tmp_path / "walk.mp4", tmp_path / "out"
    arguments = Arguments(weights, path, output)
    for numbers in (range(5), range(3)):
        video.write_video(path, [picture(number) for number in numbers], Fraction(10))
        predict_all(arguments, PROCESS)
        labels = sorted((output / "labels" / "walk").iterdir())
        assert len(labels) == len(list((output / "overlay" / "walk").iterdir())) == len(numbers)
        for frame, label in zip(video.read_frames(path), labels, strict=True):
            assert torch.equal(read(label), Segmenter.load(weights).predict(frame).labels)
        assert len(list(video.read_frames(output / "overlay" / "walk.mp4"))) == len(numbers)
    assert "1 predicted (1 again" in capsys.readouterr().out
    predict_all(arguments, PROCESS)
    assert capsys.readouterr().out == "0 predicted, 1 kept from before\n"


def test_gray_images_are_read_in_their_range(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "eight").mkdir()
    (tmp_path / "twelve").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (32, 64))
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "eight" / "a.png")
    Image.fromarray((values * 4095 / 255).round().astype(np.uint16)).save(tmp_path / "twelve" / "a.png")
    found = []
    for name, value_range in (("eight", None), ("twelve", (0, 4095))):
        output = tmp_path / f"of_{name}"
        kinds = ("confidence",)
        arguments = Arguments(weights, tmp_path / name, output, kinds, value_range=value_range)
        assert predict_all(arguments, PROCESS) == []
        found.append(read(output / "confidence" / "a.png"))
    assert torch.equal(*found)


def test_the_range_of_the_training_is_kept_with_the_model(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, photos = np.random.default_rng(0).integers(0, 4096, (32, 64)), tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(values.astype(np.uint16)).save(photos / "a.png")
    loaded = Segmenter.load(weights)
    assert loaded.value_range is None
    Segmenter(loaded.model, loaded.classes, loaded.full_size, (0, 4095)).save(tmp_path / "model.pt")
    segmenter = Segmenter.load(tmp_path / "model.pt")
    assert segmenter.value_range == (0, 4095)
    wanted = segmenter.predict(read_image(photos / "a.png", (0, 4095))).labels
    assert torch.equal(segmenter.predict(photos / "a.png").labels, wanted)
    assert predict_all(Arguments(tmp_path / "model.pt", photos, tmp_path / "out"), PROCESS) == []
    assert torch.equal(read(tmp_path / "out" / "labels" / "a.png"), wanted)
    assert "value-range" not in capsys.readouterr().out
    dark = Arguments(tmp_path / "model.pt", photos, tmp_path / "dark", value_range=(0, 65535))
    predict_all(dark, PROCESS)
    dark_labels = segmenter.predict(read_image(photos / "a.png", (0, 65535))).labels
    assert torch.equal(read(tmp_path / "dark" / "labels" / "a.png"), dark_labels)
    assert "try --value-range 0 4095" in capsys.readouterr().out


def test_links_that_lead_nowhere_do_not_stop_the_others(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").symlink_to("gone.png")
    (photos / "itself.png").symlink_to("itself.png")
    (photos / "notes.txt").touch()
    (photos / "scan.heic").touch()
    arguments = Arguments(weights, photos, tmp_path / "out")
    unreadable = predict_all(arguments, PROCESS)
    assert len(unreadable) == 2
    assert "broken.png" in unreadable[0]
    assert "itself.png" in unreadable[1]
    assert "Errno" not in "".join(unreadable)
    printed = capsys.readouterr().out
    assert "3 predicted, 2 unreadable" in printed
    assert "1 *.heic (the format .heic is not supported" in printed
    assert "1 *.txt" in printed
    assert len(list((tmp_path / "out" / "labels").rglob("*.png"))) == 3


def test_a_folder_without_results_takes_any_options(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    assert len(predict_all(Arguments(weights, tmp_path / "photos", tmp_path / "out"), PROCESS)) == 1
    save(tmp_path / "photos" / "a.png", picture(0))
    assert predict_all(Arguments(weights, tmp_path / "photos", tmp_path / "out", flip=True), PROCESS) == []
    with pytest.raises(ValueError, match="flip: True then, False now"):
        predict_all(Arguments(weights, tmp_path / "photos", tmp_path / "out"), PROCESS)


def test_results_of_another_model_or_other_options_are_rejected(
    weights: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    predict_all(Arguments(weights, photos, output), PROCESS)
    with pytest.raises(ValueError, match="flip: False then, True now"):
        predict_all(Arguments(weights, photos, output, flip=True), PROCESS)
    segmenter = Segmenter.load(weights)
    with torch.no_grad():
        segmenter.model.head.classify.weight.neg_()
    segmenter.save(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="sha256"):
        predict_all(Arguments(tmp_path / "other.pt", photos, output), PROCESS)
    # The same model at another path is accepted.
    (tmp_path / "moved.pt").write_bytes(weights.read_bytes())
    assert predict_all(Arguments(tmp_path / "moved.pt", photos, output), PROCESS) == []


def test_an_output_accepts_one_process_at_a_time(weights: Path, photos: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cpsl.training.checkpoints import exclusive_run\n"
        "with exclusive_run(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    output = tmp_path / "out"
    words = [sys.executable, "-c", program, str(output)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **pipes) as first:
        assert first.stdout.readline() == "in\n"
        with pytest.raises(BlockingIOError, match=re.escape(str(output))):
            predict_all(Arguments(weights, photos, output), PROCESS)
        assert not list(output.rglob("*.json"))
        first.kill()
    assert predict_all(Arguments(weights, photos, output), PROCESS) == []


@pytest.mark.parametrize("kind", get_args(Kind))
def test_empty_results_are_predicted_again(weights: Path, photos: Path, tmp_path: Path, kind: Kind) -> None:
    arguments = Arguments(weights, photos, tmp_path / "out", write=(kind,))
    predict_all(arguments, PROCESS)
    first, *_ = (path for path in sorted((tmp_path / "out" / kind).rglob("*")) if path.is_file())
    content = first.read_bytes()
    first.write_bytes(b"")
    predict_all(arguments, PROCESS)
    assert first.read_bytes() == content


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("written", get_args(Kind))
def test_files_that_are_no_results_are_kept(
    weights: Path, photos: Path, tmp_path: Path, kind: Kind, written: Kind
) -> None:
    output = tmp_path / "target"
    foreign = output / kind / "city" / "upright.png"
    save(foreign, picture(7))
    before = foreign.read_bytes()
    with pytest.raises(ValueError, match=r"prediction\.json") as refused:
        predict_all(Arguments(weights, photos, output, (written,)), PROCESS)
    assert str(foreign.parents[1]) in str(refused.value)
    assert "--output" in str(refused.value)
    assert foreign.read_bytes() == before
    assert [path for path in output.rglob("*") if path.is_file()] == [foreign]


def test_a_picture_named_legend_is_kept(weights: Path, photos: Path, tmp_path: Path) -> None:
    save(tmp_path / "out" / "legend.png", picture(7))
    assert predict_all(Arguments(weights, photos, tmp_path / "out"), PROCESS) == []
    assert torch.equal(read(tmp_path / "out" / "legend.png").movedim(-1, 0), picture(7))


@pytest.mark.parametrize("kinds", [("labels",), ("confidence",)])
def test_results_without_colors_have_no_legend(
    weights: Path, photos: Path, tmp_path: Path, kinds: tuple[Kind, ...]
) -> None:
    predict_all(Arguments(weights, photos, tmp_path / "out", kinds), PROCESS)
    assert not (tmp_path / "out" / "legend.png").exists()


def test_hidden_files_are_no_results(weights: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "labels").mkdir(parents=True)
    (tmp_path / "out" / "labels" / ".DS_Store").touch()
    assert predict_all(Arguments(weights, photos, tmp_path / "out"), PROCESS) == []


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_description_is_named(weights: Path, photos: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "out" / "prediction.json"
    path.parent.mkdir()
    path.write_text(content)
    (path.parent / "labels").mkdir()
    (path.parent / "labels" / "a.png").touch()
    with pytest.raises(ValueError, match=r"prediction\.json"):
        predict_all(Arguments(weights, photos, path.parent), PROCESS)


def test_damaged_files_are_listed_at_the_end(weights: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "0 first.png").write_bytes(b"no picture")
    cut = (photos / "city" / "b.c.jpg").read_bytes()
    (photos / "city" / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    words = ["--weights", weights, "--input", photos, "--output", tmp_path / "out"]
    ended = cpsl("predict", *words, "--device", "cpu", "--write", "labels")
    assert ended.code == 1
    assert "Traceback" not in ended.text
    assert str(photos / "0 first.png") in ended.text
    assert str(photos / "city" / "cut.jpg") in ended.text
    assert not printed_commands(ended.text)  # the evaluation would stop at the first of them
    written = {path.name for path in (tmp_path / "out").rglob("*.png")}
    assert written == {"a.png", "b.c.png", "upright.png"}


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_an_error_that_tells_nothing_about_the_file_stops_the_command(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    av = pytest.importorskip("av", reason="videos need cpsl[video]")
    video.write_video(photos / "a.mp4", [picture(1)], Fraction(10))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(*((Image, "open", fail) if name == "a.png" else (av, "open", fail)))
    with pytest.raises(OSError, match="Too many open files") as stopped:
        predict_all(Arguments(weights, photos / name, tmp_path / "out"), PROCESS)
    assert name == "a.mp4" or name in "".join(stopped.value.__notes__)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_image_without_finite_scores_stops_the_command(
    photos: Path, tmp_path: Path, precision: Precision
) -> None:
    model = Overflowing(3)
    model.spec = NetworkSpec("small_networks:Overflowing", {})
    Segmenter(model, CLASSES, (32, 64)).save(tmp_path / "model.pt")
    arguments = Arguments(tmp_path / "model.pt", photos, tmp_path / "out", precision=precision)
    with pytest.raises(ValueError, match="not finite") as refused:
        predict_all(replace(arguments, network="small_networks:Overflowing"), PROCESS)
    assert str(photos / "a.png") in str(refused.value)
    assert ("--precision float32" if precision == "bfloat16" else "--weights") in str(refused.value)
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(("kinds", "shown"), [(["labels", "overlay"], "overlay"), (["colors"], "colors")])
def test_the_steps_after_a_prediction_work_as_printed(
    weights: Path, photos: Path, tmp_path: Path, kinds: list[str], shown: str
) -> None:
    words = ["--weights", weights, "--input", photos, "--output", tmp_path / "a b"]
    ended = cpsl("predict", *words, "--device", "cpu", "--write", *kinds)
    assert ended.code == 0, ended.text
    picture = next(line.strip() for line in ended.text.splitlines() if f"/{shown}/" in line)
    read(Path(*shlex.split(picture)))
    assert f"colors: {tmp_path / 'a b' / 'legend.png'}" in ended.text
    assert is_legend(tmp_path / "a b" / "legend.png")
    (command,) = printed_commands(ended.text)
    assert command[0] == "evaluate"
    scored = cpsl(*command)
    assert scored.code == 0, scored.text
    assert "without labels" in scored.text
    shares = [float(line.split()[-1]) for line in scored.text.splitlines()[1 : 1 + len(CLASSES.names)]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    other = [*words[:-1], tmp_path / "other", "--size", "64", "64"]
    assert not printed_commands(cpsl("predict", *other, "--device", "cpu").text)


def test_the_input_may_be_one_image(weights: Path, photos: Path, tmp_path: Path) -> None:
    assert predict_all(Arguments(weights, photos / "a.png", tmp_path / "out"), PROCESS) == []
    assert (tmp_path / "out" / "labels" / "a.png").exists()
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        predict_all(Arguments(weights, photos / "nowhere.png", tmp_path / "other"), PROCESS)


def test_an_output_inside_the_input_is_rejected(weights: Path, photos: Path) -> None:
    with pytest.raises(ValueError, match="predicted"):
        predict_all(Arguments(weights, photos, photos / "predicted"), PROCESS)
    assert not (photos / "predicted").exists()


@pytest.mark.parametrize("rotation", [0, 90, -90, 180])
def test_frames_of_a_video(weights: Path, tmp_path: Path, rotation: int) -> None:
    av = pytest.importorskip("av", reason="videos need cpsl[video]")
    frames = [picture(number) for number in range(3)]
    path = tmp_path / "walk.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25, 2))
        stream.height, stream.width, stream.pix_fmt = 40, 72, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            array = frame.permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    # The angle is counterclockwise, as that of rot90.
    wanted = [frame.rot90(rotation // 90, (1, 2)) for frame in frames]
    got = list(video.read_frames(path))
    assert [frame.shape for frame in got] == [frame.shape for frame in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert (one.float() - other.float()).abs().mean() < 12  # it is lossy

    output = tmp_path / "out"
    assert predict_all(Arguments(weights, path, output), PROCESS) == []
    segmenter = Segmenter.load(weights)
    for index, frame in enumerate(got):
        labels = read(output / "labels" / "walk" / f"{index:06d}.png")
        assert torch.equal(labels, segmenter.predict(frame).labels)
    shown = list(video.read_frames(output / "overlay" / "walk.mp4"))
    assert len(shown) == 3
    assert video.frame_rate(output / "overlay" / "walk.mp4") == Fraction(25, 2)
    first = read(output / "overlay" / "walk" / "000000.jpg").permute(2, 0, 1).float()
    assert (shown[0].float() - first).abs().mean() < 12


def test_a_video_that_is_cut_off_is_predicted_with_a_warning(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    av = pytest.importorskip("av", reason="videos need cpsl[video]")
    path = tmp_path / "walk.mkv"
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 40, 72, "yuv420p"
        for number in range(60):
            array = picture(number).permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    data, output = path.read_bytes(), tmp_path / "out"
    path.write_bytes(data[: len(data) // 2])
    for _ in range(2):
        assert predict_all(Arguments(weights, path, output), PROCESS) == []
        assert f"Warning: {path} " in capsys.readouterr().out
    assert 0 < len(list((output / "labels" / "walk").iterdir())) < 60
    path.write_bytes(data[:800])
    (message,) = predict_all(Arguments(weights, path, output), PROCESS)
    assert str(path) in message
    assert [file.name for file in output.rglob("*.*g") if file.is_file()] == ["legend.png"]


def test_a_damaged_video_is_named(weights: Path, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="videos need cpsl[video]")
    frames = [picture(number) for number in range(30)]
    video.write_video(photos / "cut.mp4", frames, Fraction(10))
    data = (photos / "cut.mp4").read_bytes()
    (photos / "cut.mp4").write_bytes(data[: len(data) // 2])
    unreadable = predict_all(Arguments(weights, photos, tmp_path / "out"), PROCESS)
    assert len(unreadable) == 1
    assert f"{photos / 'cut.mp4'} " in unreadable[0]
    assert len(list((tmp_path / "out" / "labels").rglob("*.png"))) == 3
    assert not (tmp_path / "out" / "overlay" / "cut.mp4").exists()


def test_missing_pyav_is_named(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (photos / "walk.mp4").write_bytes(b"")
    unreadable = predict_all(Arguments(weights, photos, tmp_path / "out"), PROCESS)
    assert len(unreadable) == 1
    assert "cpsl[video]" in unreadable[0]
    assert "walk.mp4" in unreadable[0]
    assert len(list((tmp_path / "out" / "labels").rglob("*.png"))) == 3
