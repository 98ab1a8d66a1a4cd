import re
from pathlib import Path

import pytest
import torch

from report import Picture, Report, metrics_table, write_report

STAGES = ("source_only", "warmup", "self_label", "distill_1", "distill_2")


def report(labelled: bool = True, classes: tuple[str, ...] = ("road", "sky")) -> Report:
    label = torch.randint(len(classes), (24, 32))
    metrics = {
        stage: {
            "miou": 40.0 + 5 * i if labelled else None,
            "iou": {
                name: 40.0 + 5 * i if labelled and k else None for k, name in enumerate(classes)
            },
            "seconds": 12.3,
            "confidence": 0.8,
            "changed": 0.1 if i else None,
            "class_frequency": [1 / len(classes)] * len(classes),
        }
        for i, stage in enumerate(STAGES)
    }
    picture = Picture(
        name="city/one",
        image=torch.randint(256, (3, 24, 32), dtype=torch.uint8),
        ground_truth=label if labelled else None,
        predictions=dict.fromkeys(STAGES, label),
        pseudo_labels={"before rectification": label, "after rectification": label},
        confidence=torch.rand(24, 32),
    )
    return Report(
        title="a run",
        classes=classes,
        palette=((128, 64, 128), (70, 130, 180)),
        metrics=metrics,
        class_distributions={"labels of the source": [0.7, 0.3], "assignments": [0.0, 1.0]},
        curves={"warmup": {"loss_source": [(20, 1.0), (40, 0.5)], "flat": [(20, 1.0)]}},
        pictures=[picture],
        config='output = "runs/x"\n',
    )


@pytest.mark.parametrize("labelled", [True, False])
def test_the_report_holds_every_stage_class_and_picture(tmp_path: Path, labelled: bool) -> None:
    path = tmp_path / "report.html"
    write_report(report(labelled), path)
    html = path.read_text()
    for text in ("Source only", "Self-labeling", "Distillation 2", "road", "sky", "city/one"):
        assert text in html
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 9 + labelled
    assert all(re.search(r'alt="[^"]{5,}"', image) for image in images)
    assert ("40.0 → 60.0" in html) == labelled
    assert ("No target labels" in html) != labelled
    assert list(tmp_path.iterdir()) == [path]


def test_the_report_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    write_report(report(), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", html)
    assert "<script" not in html


def test_names_from_strangers_are_shown_and_not_run(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    write_report(report(classes=(hostile, "sky")), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert hostile not in html
    assert "&lt;script&gt;" in html


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    large = report()
    picture = large.pictures[0]
    image = torch.randint(256, (3, 512, 1024), dtype=torch.uint8)
    label = torch.zeros(512, 1024, dtype=torch.int64)
    large.pictures[0] = Picture(
        picture.name, image, label, {"warmup": label}, {}, torch.rand(512, 1024)
    )
    write_report(large, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 600_000


def test_the_table_shows_what_is_unknown_as_a_dash() -> None:
    lines = metrics_table(report().metrics, ("road", "sky")).splitlines()
    assert lines[1].split() == ["road", *["–"] * 5]
    assert lines[2].split() == ["sky", "40.0", "45.0", "50.0", "55.0", "60.0"]
    assert len({len(line) for line in lines[1:]}) == 1
