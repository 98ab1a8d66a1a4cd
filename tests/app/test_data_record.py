import json
import os
import shutil
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from PIL import Image

from app.conftest import Run
from app.tiny import cpsl
from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.app.data_record import NAME, changed_data, evaluation_version, list_paths, record_data
from cpsl.data import GTA5, Cityscapes, SegmentationFolder, Subset, write_streets


def test_the_files_of_every_layout_are_listed(tmp_path: Path) -> None:
    write_streets(tmp_path / "gta5", layout="gta5", style="game", count=2, size=(64, 128))
    write_streets(tmp_path / "city", layout="cityscapes", style="real", count=2, split="val", size=(64, 128))
    folders = SegmentationFolder(tmp_path / "gta5" / "images", tmp_path / "gta5" / "labels", ["a"])
    for dataset in (GTA5(tmp_path / "gta5"), Cityscapes(tmp_path / "city", "val"), folders):
        images, labels = list_paths(dataset)
        assert len(images) == len(labels) == 2
        assert all(Path(path).is_file() for path in images + labels)
        assert list_paths(Subset(dataset, [1])) == (images[1:], labels[1:])
    assert list_paths(SegmentationFolder(tmp_path / "gta5" / "images"))[1] == []


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Settings of a run on folders of two images, in which the source is trained."""
    monkeypatch.chdir(tmp_path)
    for domain in ("source", "target", "evaluation"):
        for part in ("images", "labels"):
            for name in ("a", "b"):
                picture(Path(domain, part, f"{name}.png"), 0)
    words = ["--output", "run", "--classes", "a", "b", "--target.images", "target/images"]
    for domain in ("source", "evaluation"):
        words += [f"--{domain}.images", f"{domain}/images", f"--{domain}.labels", f"{domain}/labels"]
    return parse(words)


def train() -> None:
    Path("run/source_only").mkdir(parents=True, exist_ok=True)
    Path("run/source_only/checkpoint.pt").touch()


def test_data_may_change_until_something_is_trained(config: Config) -> None:
    record_data(config)
    picture(Path("source/images/a.png"), 1)
    record_data(config)
    train()
    record_data(config)
    assert not changed_data(config)


@pytest.mark.parametrize("domain", ["source/images", "source/labels", "target/images"])
@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_changed_training_data_are_refused_with_what_to_do(config: Config, domain: str, change: str) -> None:
    record_data(config)
    train()
    path = Path(domain, "a.png")
    if change == "remove":
        names = [Path(path.parents[1], part, "a.png") for part in ("images", "labels")]
        [name.unlink() for name in names]
    elif change == "add":
        [picture(Path(path.parents[1], part, "c.png"), 0) for part in ("images", "labels")]
        path = path.with_name("c.png")
    else:
        picture(path, 1)
    before = Path("run", NAME).read_text()
    for _ in range(2):  # it is not forgotten
        with pytest.raises(ValueError, match=str(path)) as refused:
            record_data(config)
        assert str(refused.value) == changed_data(config)
    assert f"{domain.replace('/', ' ')}: 1" in str(refused.value)
    assert "source_only" in str(refused.value)
    assert "--output" in str(refused.value)
    assert Path("run", NAME).read_text() == before
    Path("run", NAME).unlink()  # as the message says
    record_data(config)
    assert not changed_data(config)


def test_labels_of_the_target_are_not_training_data(config: Config) -> None:
    record_data(config)
    train()
    picture(Path("target/labels/a.png"), 1)
    assert not changed_data(config)


@pytest.mark.parametrize(
    ("select", "part", "refused"),
    [
        ("last", "images", False),
        ("last", "labels", False),
        ("score", "images", True),
        ("score", "labels", False),
        ("best", "images", True),
        ("best", "labels", True),
    ],
)
def test_evaluation_data_may_change_unless_they_select_weights(
    config: Config, select: str, part: str, refused: bool
) -> None:
    object.__setattr__(config, "select_checkpoint", select)
    record_data(config)
    train()
    version = evaluation_version(config)
    record_data(config)
    assert evaluation_version(config) == version
    picture(Path("evaluation", part, "a.png"), 1)
    if refused:
        with pytest.raises(ValueError, match=f"evaluation {part}: 1 changed"):
            record_data(config)
        return
    record_data(config)
    changed = evaluation_version(config)
    assert changed != version
    record_data(config)
    assert evaluation_version(config) == changed


def test_an_edit_under_the_old_time_is_noticed(config: Config) -> None:
    record_data(config)
    train()
    path = Path("source/labels/a.png")
    status, content = path.stat(), path.read_bytes()
    sleep(0.02)  # the clock of file systems is coarse
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not changed_data(config)
    path.write_bytes(content[:-1] + b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "source labels: 1 changed" in changed_data(config)


def test_a_copied_data_set_is_the_same(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    record_data(config)
    train()
    version = evaluation_version(config)
    for domain in ("source", "target", "evaluation"):
        for path in Path(domain).rglob("*.png"):
            os.utime(path, (9, 9))
    record_data(config)
    assert "10 files with new times" in caplog.text
    assert evaluation_version(config) == version
    assert (
        json.loads(Path("run", NAME).read_text())["files"]["source images"]["source/images/a.png"][1] == 9e9
    )


def test_other_weights_of_the_same_name_are_refused(config: Config) -> None:
    Path("x.pth").write_bytes(b"1")
    object.__setattr__(config.source_only, "start", "x.pth")
    record_data(config)
    train()
    Path("x.pth").write_bytes(b"22")
    with pytest.raises(ValueError, match=r"weights: 1 changed, such as x\.pth"):
        record_data(config)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {}}', '{"files": {"a": 1}, "evaluation": ""}'])
def test_a_damaged_record_is_named(config: Config, content: str) -> None:
    Path("run").mkdir()
    Path("run", NAME).write_text(content)
    with pytest.raises(ValueError, match=NAME):
        record_data(config)


def test_changed_evaluation_labels_give_new_figures_without_training(finished: Run, tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "streets"
    shutil.copytree(finished.folder, run)
    shutil.copytree(finished.config.parent / "streets", data)
    settings = tmp_path / "settings.toml"
    text = finished.config.read_text(encoding="utf-8")
    settings.write_text(
        text.replace(finished.config.parent.as_posix(), tmp_path.as_posix()), encoding="utf-8"
    )
    for file in (run / "config.toml", run / NAME):
        file.write_text(file.read_text().replace(finished.config.parent.as_posix(), tmp_path.as_posix()))
    weights = (run / "warmup" / "model.pt").read_bytes()
    for checkpoint in run.glob("*/checkpoint.pt*"):  # training again would start from the beginning
        checkpoint.unlink()
    figures = json.loads((run / "metrics.json").read_text())
    labels = sorted(data.rglob("val/**/*labelIds.png"))
    label = np.array(Image.open(labels[0]))
    Image.fromarray(np.where(label == 7, 23, label)).save(labels[0])  # road to sky

    ended = cpsl("adapt", "--config", settings, "--output", run)
    assert ended.code == 0, ended.text
    assert f"evaluation labels: 1 changed, such as {labels[0].as_posix()}" in ended.text
    new = json.loads((run / "metrics.json").read_text())
    assert all(new[stage]["iou"] != figures[stage]["iou"] for stage in figures)
    assert all(new[stage]["seconds"] == figures[stage]["seconds"] for stage in figures)
    assert (run / "warmup" / "model.pt").read_bytes() == weights
    assert "evaluated again" not in cpsl("adapt", "--config", settings, "--output", run).text
