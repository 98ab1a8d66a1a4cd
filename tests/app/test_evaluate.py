import json
from dataclasses import replace
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from app.conftest import Run
from app.tiny import cpsl, printed_commands
from cpsl import LabelFreeScores, Segmenter
from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.app.domain import Domain
from cpsl.app.evaluate import Arguments, evaluate, evaluating, evenly_spaced, prepare
from cpsl.app.settings import UsageError
from cpsl.authors import save_release_checkpoint
from cpsl.data import CITYSCAPES_16, CITYSCAPES_19, Cityscapes, HardLabelStore, LabelSpace, write_streets
from cpsl.data.legends import is_legend
from cpsl.data.predictions import ColorStore, LabelIdStore
from cpsl.metrics import ConfusionMatrix
from cpsl.models import DeepLabV2
from cpsl.training import Process
from small_networks import Colors, Overflowing

PROCESS = Process(torch.device("cpu"))


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streets")
    write_streets(root, layout="cityscapes", style="real", split="val", count=3, size=(64, 128))
    return root


def settings(root: Path, classes: str = "cityscapes-19", *options: str) -> Config:
    words = ["--output", str(root / "run"), "--device", "cpu", "--classes", classes]
    words += ["--source.images", "a", "--target.dataset", "cityscapes", "--target.root", str(root)]
    words += ["--evaluation.dataset", "cityscapes", "--evaluation.root", str(root)]
    words += ["--evaluation.split", "val", "--views.full-size", "64", "128", *options]
    return parse(words)


def store_model(path: Path, size: tuple[int, int] | None = (32, 64)) -> None:
    classes = LabelSpace(("a", "b"), ((1, 2, 3), (4, 5, 6)))
    Segmenter(DeepLabV2(2, "resnet_tiny", 8), classes, size, value_range=(0, 1023)).save(path)


STORED = {
    "views.full_size": ((32, 64), "[views]\nfull_size = [16, 48]", (16, 48)),
    "target.value_range": ((0, 1023), "[target]\nvalue_range = [0, 4095]", (0, 4095)),
    "classes": (("a", "b"), 'classes = ["a", "b"]', ("a", "b")),
    "palette": (((1, 2, 3), (4, 5, 6)), "palette = [[9, 9, 9], [8, 8, 8]]", ((9, 9, 9), (8, 8, 8))),
}


@pytest.mark.parametrize("name", STORED)
def test_what_no_file_sets_is_that_of_the_model(tmp_path: Path, name: str) -> None:
    of_model, line, of_file = STORED[name]
    store_model(tmp_path / "model.pt")
    config, images = tmp_path / "more.toml", tmp_path / "images"
    arguments = Arguments(weights=tmp_path / "model.pt", config=(str(config),), images=images)
    config.write_text("[evaluation]\nskip_unpaired = true\n")
    for each in (arguments, replace(arguments, config=())):
        assert attrgetter(name)(prepare(each)[0]) == of_model
    config.write_text(line)
    read = prepare(arguments)[0]
    assert attrgetter(name)(read) == of_file
    assert name == "palette" or read.palette == STORED["palette"][0]


def test_a_model_of_unknown_size_needs_a_file_with_it(tmp_path: Path) -> None:
    store_model(tmp_path / "model.pt", size=None)
    (tmp_path / "more.toml").write_text("seed = 1\n")
    arguments = Arguments(weights=tmp_path / "model.pt", images=tmp_path / "images")
    for config in ((), (str(tmp_path / "more.toml"),)):
        with pytest.raises(ValueError, match=r"model\.pt.*full_size"):
            prepare(replace(arguments, config=config))
    (tmp_path / "more.toml").write_text("[views]\nfull_size = [16, 32]\n")
    found = prepare(replace(arguments, config=(str(tmp_path / "more.toml"),)))[0]
    assert found.views.full_size == (16, 32)


@torch.no_grad()
def test_metrics_match_the_equations(streets: Path) -> None:
    model, config = Colors(16), settings(streets, "cityscapes-16")
    dataset = Cityscapes(streets, "val", CITYSCAPES_16)
    confusion = ConfusionMatrix(16)
    for image, label, _ in (dataset[i] for i in range(3)):
        logits = model(image[None] / 255).logits
        upsampled = F.interpolate(logits, (64, 128), mode="bilinear", align_corners=True)
        confusion.update(upsampled.argmax(dim=1)[0], label)
    metrics = evaluate(model, config, PROCESS)
    assert metrics["miou"] == pytest.approx(100 * float(confusion.miou), abs=1e-4)
    # The classes of SYNTHIA without wall, fence and pole, which are the fourth to sixth.
    of_13 = confusion.iou[[0, 1, 2, *range(6, 16)]].nanmean()
    assert metrics["miou_13"] == pytest.approx(100 * float(of_13), abs=1e-4)
    assert metrics["label_pixels"][:-1] == confusion.matrix.sum(dim=1).tolist()
    assert sum(metrics["label_pixels"]) == 3 * 64 * 128
    assert "miou_13" not in evaluate(Colors(19), settings(streets), PROCESS)


@torch.no_grad()
def test_labels_can_be_compared_at_another_size(streets: Path) -> None:
    config = settings(streets, "cityscapes-19", "--views.evaluation-size", "32", "64")
    model, confusion, dataset = Colors(19), ConfusionMatrix(19), Cityscapes(streets, "val")
    for image, label, _ in (dataset[i] for i in range(3)):
        logits = model(image[None] / 255).logits
        small = F.interpolate(logits, (32, 64), mode="bilinear", align_corners=True)
        nearest = Image.fromarray(label.numpy()).resize((64, 32), Image.Resampling.NEAREST)
        confusion.update(small.argmax(dim=1)[0], torch.from_numpy(np.array(nearest)))
    assert evaluate(model, config, PROCESS)["miou"] == pytest.approx(100 * float(confusion.miou), abs=1e-4)


@pytest.mark.parametrize(("images", "mirrored"), [(3, 3), (21, 20), (105, 21)])
def test_a_fifth_of_many_images_is_mirrored_but_no_few(
    streets: Path, tmp_path: Path, images: int, mirrored: int
) -> None:
    for index in range(images):
        Image.new("RGB", (16, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")
    config = replace(settings(streets), evaluation=Domain(images=tmp_path))
    assert evaluate(Colors(19), config, PROCESS)["mirrored"] == mirrored


def test_scores_need_no_labels_and_are_those_of_the_library(streets: Path, tmp_path: Path) -> None:
    config, images = settings(streets), tmp_path / "images"
    images.mkdir()
    for path in streets.glob("leftImg8bit/val/*/*.png"):
        (images / path.name).write_bytes(path.read_bytes())
    evaluation = Domain(images=images)
    unlabeled = replace(config, evaluation=evaluation)
    source = torch.arange(1.0, 20.0)
    with_labels, without = (
        evaluate(Colors(19), c, PROCESS, source=source)["scores"] for c in (config, unlabeled)
    )
    assert with_labels == without
    expected = LabelFreeScores(19, source, ["flip"])
    dataset, segmenter = Cityscapes(streets, "val"), Segmenter(Colors(19).eval(), CITYSCAPES_19, (64, 128))
    for image, _, _ in (dataset[i] for i in range(3)):
        mirrored = segmenter.predict(image.flip(-1)).scores.flip(-1)[None]
        expected.update(segmenter.predict(image).scores[None], {"flip": mirrored})
    result = expected.compute()
    assert without["entropy"] == pytest.approx(float(result.entropy))
    assert without["density"] == pytest.approx(float(result.density))
    assert without["flip_agreement"] == pytest.approx(float(result.agreements["flip"].labels))
    assert without["class_variation"] == pytest.approx(float(result.class_variation))
    assert without["class_distribution"] == pytest.approx(result.class_distribution.tolist())
    assert evaluate(Colors(19), config, PROCESS, flip=True)["scores"]["flip_agreement"] is None


def test_pixels_that_are_not_finite_are_counted(streets: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = settings(streets)
    assert evaluate(Colors(19), config, PROCESS)["non_finite"] == 0
    assert not caplog.text
    wrong = evaluate(Overflowing(19), replace(config, precision="bfloat16"), PROCESS)["non_finite"]
    assert 0 < wrong <= 3 * 64 * 128
    assert f"{wrong} of {3 * 64 * 128} pixels" in caplog.text
    assert "--precision float32" in caplog.text


def test_folders_are_read_like_those_of_the_run_except_for_ids(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'classes = ["a", "b"]\n[target]\nimages = "t"\n[evaluation]\nimages = "i"\nlabels = "l"\n'
        'label_pattern = "*_mask"\nids = { "#ff0000" = "b" }\ntolerance = 9\nvalue_range = [0, 4095]\n'
    )
    arguments = Arguments(
        weights=tmp_path / "model.pt",
        config=(str(tmp_path / "run.toml"),),
        images=tmp_path / "images",
        labels=tmp_path / "labels",
    )
    store_model(arguments.weights)
    read = prepare(arguments)[0].evaluation
    assert (read.images, read.labels) == (tmp_path / "images", tmp_path / "labels")
    assert (read.label_pattern, dict(read.ids)) == ("*_mask", {"#ff0000": "b"})
    assert (read.tolerance, read.value_range) == (9, (0, 4095))
    assert dict(prepare(replace(arguments, ids={7: 0}))[0].evaluation.ids) == {7: 0}
    (tmp_path / "run.toml").write_text(
        'classes = ["a", "b"]\n[target]\nimages = "t"\nvalue_range = [0, 4095]\n'
        "[evaluation]\nskip_unpaired = true\n"
    )
    read = prepare(arguments)[0].evaluation
    assert (read.skip_unpaired, read.value_range) == (True, (0, 4095))


@pytest.mark.parametrize("dataset", ["images", "evaluation", "both"])
def test_an_evaluation_has_the_range_of_the_model(tmp_path: Path, dataset: str) -> None:
    store_model(tmp_path / "model.pt")
    (tmp_path / "more.toml").write_text('[target]\nimages = "t"\n[evaluation]\nimages = "i"\n')
    arguments = Arguments(
        weights=tmp_path / "model.pt",
        config=() if dataset == "images" else (str(tmp_path / "more.toml"),),
        images=None if dataset == "evaluation" else tmp_path / "images",
    )
    assert prepare(arguments)[0].evaluation.value_range == (0, 1023)
    (tmp_path / "more.toml").write_text('[evaluation]\nimages = "i"\nvalue_range = [1, 2]\n')
    if arguments.config:
        assert prepare(arguments)[0].evaluation.value_range == (1, 2)
    (tmp_path / "more.toml").write_text('[evaluation]\ndataset = "cityscapes"\nroot = "i"\n')
    wanted = None if dataset == "evaluation" else (0, 1023)  # it is no setting of Cityscapes
    assert prepare(arguments)[0].evaluation.value_range == wanted


@pytest.mark.parametrize("evaluated", ["target", "evaluation"])
def test_ids_replace_those_of_the_file(tmp_path: Path, evaluated: str) -> None:
    store_model(tmp_path / "model.pt")
    file = tmp_path / "run.toml"
    of_data = f'[{evaluated}]\nimages = "i"\nlabels = "l"\nlabel_pattern = "*_mask"\n'
    file.write_text(f"{of_data}ids = {{ 1 = 0 }}\n")
    arguments = Arguments(weights=tmp_path / "model.pt", config=(str(file),), ids={7: 0, 9: 1})
    for line in ("ids = { 1 = 0 }", "first_id = 1"):
        file.write_text(f"{of_data}{line}\n")
        domain = prepare(arguments)[0].evaluation
        assert (dict(domain.ids), domain.first_id) == ({7: 0, 9: 1}, 0)
        assert (domain.images, domain.labels, domain.label_pattern) == (Path("i"), Path("l"), "*_mask")
    file.write_text(f'[{evaluated}]\nimages = "i"\n')
    with pytest.raises(UsageError, match="--ids"):
        prepare(arguments)


def test_labels_need_their_images(tmp_path: Path) -> None:
    store_model(tmp_path / "model.pt")
    file = tmp_path / "run.toml"
    file.write_text('[target]\nimages = "t"\nlabels = "l"\n')
    for config in ((), (str(file),)):
        with pytest.raises(UsageError, match=r"--labels .*lab.* --images"):
            prepare(Arguments(tmp_path / "model.pt", config, labels=tmp_path / "lab"))


@pytest.mark.parametrize("option", ["predictions", "label_ids", "colors"])
@pytest.mark.parametrize("folder", ["data", "data/images", "data/labels", "data/labels/new", "data/a/.."])
def test_predictions_are_not_written_among_data(tmp_path: Path, option: str, folder: str) -> None:
    store_model(tmp_path / "model.pt")
    data = tmp_path / "data"
    arguments = Arguments(tmp_path / "model.pt", images=data / "images", labels=data / "labels")
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} .*evaluation") as refused:
        prepare(replace(arguments, **{option: tmp_path / folder}))
    assert str(tmp_path / folder) in str(refused.value)
    prepare(replace(arguments, **{option: tmp_path / "data of results"}))
    file = tmp_path / "run.toml"
    file.write_text(f'[target]\ndataset = "cityscapes"\nroot = "{data.as_posix()}"\n')
    with pytest.raises(ValueError, match=r"target\.root"):
        prepare(Arguments(arguments.weights, (str(file),), **{option: tmp_path / folder}))


@pytest.mark.parametrize("option", ["predictions", "label_ids", "colors"])
def test_predictions_are_not_written_among_other_results(tmp_path: Path, option: str) -> None:
    store_model(tmp_path / "model.pt")
    (tmp_path / "predicted").mkdir()
    (tmp_path / "predicted" / "prediction.json").write_text("{}")
    arguments = Arguments(tmp_path / "model.pt", images=tmp_path / "images")
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} .*predicted"):
        prepare(replace(arguments, **{option: tmp_path / "predicted" / "labels"}))


@pytest.mark.parametrize("kind", [HardLabelStore, ColorStore, LabelIdStore])
def test_files_that_are_no_results_are_kept(streets: Path, tmp_path: Path, kind: Any) -> None:
    config = settings(streets)
    store = kind(tmp_path / "a") if kind is HardLabelStore else kind(tmp_path / "a", CITYSCAPES_19)
    for _ in range(2):  # its own results are replaced
        evaluate(Colors(19), config, PROCESS, [store])
    chosen = max((tmp_path / "a").rglob("*.png"))
    for content in (next((streets / "gtFine").rglob("*.png")).read_bytes(), b"no picture"):
        chosen.write_bytes(content)
        before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*.png")}
        with pytest.raises(ValueError, match=chosen.name):
            evaluate(Colors(19), config, PROCESS, [store])
        assert before == {path: path.read_bytes() for path in (tmp_path / "a").rglob("*.png")}


@given(count=st.integers(1, 300), wanted=st.integers(1, 300))
def test_evenly_spaced_indices_differ_and_cover_the_range(count: int, wanted: int) -> None:
    indices = evenly_spaced(count, wanted)
    assert len(indices) == len(set(indices)) == min(count, wanted)
    assert 0 <= min(indices) <= max(indices) < count
    assert max(b - a for a, b in pairwise([*indices, count])) <= -(-count // len(indices))


def test_the_mode_of_each_module_is_restored() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2))
    model[1].eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == [True, True, False]


def test_changes_since_the_stage_before_are_counted(streets: Path, tmp_path: Path) -> None:
    config, first = settings(streets), HardLabelStore(tmp_path / "first")
    assert evaluate(Colors(19), config, PROCESS, [first])["changed"] is None
    assert evaluate(Colors(19), config, PROCESS, before=first)["changed"] == 0


def test_an_authors_checkpoint_is_evaluated_by_the_command(streets: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DeepLabV2(19, "resnet101", 8, output_norm=True)
    save_release_checkpoint(tmp_path / "stage3.pkl", model)
    config = tmp_path / "small.toml"
    config.write_text(
        f'[evaluation]\ndataset = "cityscapes"\nroot = "{streets.as_posix()}"\nsplit = "val"\n'
        "[views]\nfull_size = [64, 128]\n"
    )
    words = ["--weights", tmp_path / "stage3.pkl", "--config", config, "--device", "cpu"]
    words += ["--flip", "--scales", "0.5", "1"]
    words += ["--label-ids", tmp_path / "ids", "--colors", tmp_path / "colors"]
    ended = cpsl("evaluate", *words)
    assert ended.code == 0, ended.text
    assert "mIoU" in ended.text
    written = sorted(path.name for path in (tmp_path / "ids").rglob("*.png"))
    assert written == [f"streets_{i:06d}_000000.png" for i in range(3)]
    ids = np.array(Image.open(next((tmp_path / "ids").rglob("*.png"))))
    assert ids.shape == (64, 128)
    assert set(np.unique(ids)) <= {7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33}
    assert Image.open(next((tmp_path / "colors").rglob("streets*.png"))).mode == "RGB"


def test_a_run_and_its_images_in_folders_give_the_same_figures(finished: Run, tmp_path: Path) -> None:
    weights = finished.folder / "distill_2" / "model.pt"
    of_run = cpsl("evaluate", "--weights", weights, "--config", finished.folder / "config.toml")
    assert of_run.code == 0, of_run.text
    miou = json.loads((finished.folder / "metrics.json").read_text())["distill_2"]["miou"]
    assert f"mIoU {miou:14.1f}".split() in [line.split() for line in of_run.text.splitlines()]

    dataset = Cityscapes(finished.config.parent / "streets" / "cityscapes", "val")
    for sample in (dataset[index] for index in range(len(dataset))):
        name = f"{sample.name.replace('/', '_')}.png"
        for part, array in (("images", sample.image.permute(1, 2, 0)), ("labels", sample.label)):
            (tmp_path / part).mkdir(exist_ok=True)
            Image.fromarray(array.contiguous().byte().numpy()).save(tmp_path / part / name)
    folders = ["--images", tmp_path / "images", "--labels", tmp_path / "labels"]
    of_folders = cpsl("evaluate", "--weights", weights, *folders)
    figures, next_steps = of_folders.text.split("Next:")
    assert figures == of_run.text.split("Next:")[0]
    assert "--colors" in next_steps


def test_settings_that_an_error_advises_work_as_it_says(finished: Run, tmp_path: Path) -> None:
    for folder, names in {"images": "abc", "labels": "ab"}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("L" if folder == "labels" else "RGB", (64, 32)).save(tmp_path / folder / f"{name}.png")
    command = ["evaluate", "--weights", finished.folder / "model.pt"]
    command += ["--images", tmp_path / "images", "--labels", tmp_path / "labels"]
    ended = cpsl(*command)
    assert ended.code == 1
    assert all(word in ended.text for word in ("skip_unpaired = true", "[evaluation]", "--config"))
    (tmp_path / "more.toml").write_text("[evaluation]\nskip_unpaired = true\n")
    ended = cpsl(*command, "--config", finished.folder / "config.toml", tmp_path / "more.toml")
    assert ended.code == 0, ended.text


@pytest.mark.parametrize("folder", ["kids", "ids", "tolerance dark", "value_range"])
def test_a_folder_named_like_a_setting_advises_no_setting(finished: Run, tmp_path: Path, folder: str) -> None:
    for part in ("images", "labels"):
        (tmp_path / folder / part).mkdir(parents=True)
        (tmp_path / folder / part / "a.png").write_bytes(b"")
    command = ["evaluate", "--weights", finished.folder / "model.pt"]
    command += ["--images", tmp_path / folder / "images", "--labels", tmp_path / folder / "labels"]
    ended = cpsl(*command)
    assert ended.code == 1
    assert "a.png" in ended.text
    assert "[evaluation]" not in ended.text


def test_the_command_after_an_evaluation_writes_its_predictions(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = ("weights", finished.folder / "model.pt"), ("config", finished.folder / "config.toml")
    ended = cpsl("evaluate", *(word for name, path in folders for word in (f"--{name}", path.resolve())))
    assert ended.code == 0, ended.text
    monkeypatch.chdir(tmp_path)
    (words,) = printed_commands(ended.text)
    again = cpsl(*words)
    assert again.code == 0, again.text
    assert f"colors: {Path('colors', 'legend.png')}" in again.text
    assert is_legend(tmp_path / "colors" / "legend.png")
    assert len(list((tmp_path / "colors").rglob("*.png"))) > 1
    assert "Next" not in again.text


def test_an_evaluation_needs_images(finished: Run) -> None:
    ended = cpsl("evaluate", "--weights", finished.folder / "distill_2" / "model.pt")
    assert ended.code == 2
    assert "--images" in ended.text
