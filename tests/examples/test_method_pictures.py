from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

import method_pictures
from config import Config, parse
from cpsl import prototype_similarity
from method_pictures import ALIGNED, NEAREST, UNIFORM, Pixels, draw_courses, quality, ways

plt.switch_backend("agg")
CONFIG = parse(
    Config,
    [
        *("--output", "runs/none", "--source.images", "a", "--target.images", "b"),
        *("--views.full-size", "64", "128", "--views.crop", "48", "96", "--views.width", "130"),
    ],
)


@pytest.fixture
def pixels() -> Pixels:
    """Features that are noisy prototypes of the ground truth."""
    torch.manual_seed(0)
    prototypes = torch.nn.functional.normalize(torch.randn(19, 16), dim=1)
    labels = torch.randint(19, (9, 8, 16))
    labels[torch.rand(labels.shape) < 0.8] = 0  # the other classes are rare
    features = prototypes[labels].movedim(-1, 1) + 0.3 * torch.randn(9, 16, 8, 16)
    logits = torch.einsum("bdhw,kd->bkhw", features, prototypes)
    return Pixels(
        torch.randint(256, (9, 3, 64, 128), dtype=torch.uint8),
        features,
        logits.softmax(dim=1),
        labels,
        prototypes,
        torch.bincount(labels.flatten(), minlength=19) / labels.numel(),
    )


def test_the_three_ways_differ_in_the_sizes_of_the_classes(pixels: Pixels) -> None:
    scores = torch.randn(4000, 19) / 50  # so even that three iterations are enough
    sizes = {way: assign(scores).mean(dim=0) for way, assign in ways(pixels.delta).items()}
    assert torch.allclose(sizes[UNIFORM], torch.full((19,), 1 / 19), atol=1e-3)
    assert torch.allclose(sizes[ALIGNED], pixels.delta, atol=5e-3)
    assert (sizes[NEAREST] * 4000).sum() == 4000


def test_quality_leaves_ignored_pixels_out() -> None:
    right, miou = quality(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 255]), 2)
    assert right == pytest.approx(100 * 2 / 3)
    assert miou == pytest.approx(50.0)


def test_every_picture_is_drawn(
    pixels: Pixels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(method_pictures, "FOLDER", tmp_path)
    monkeypatch.setattr(method_pictures, "STEPS", 50)
    scores = prototype_similarity(pixels.flat()[0], pixels.prototypes)
    assignments = {way: assign(scores) for way, assign in ways(pixels.delta).items()}
    method_pictures.draw_sizes(CONFIG, pixels, assignments)
    method_pictures.draw_maps(CONFIG, pixels, assignments)
    draw_courses(CONFIG, pixels)
    method_pictures.draw_views(CONFIG, pixels)
    assert {path.name for path in tmp_path.iterdir()} == {
        "assignments.jpg",
        "class_sizes.png",
        "rare_classes.png",
        "views.jpg",
    }
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert picture.width > 250
            colors = picture.convert("RGB").getcolors(1 << 20)
            assert colors is None or len(colors) > 8
    printed = capsys.readouterr().out
    assert "assigned to their class" in printed
    assert "after the last step" in printed


def test_the_figures_are_the_same_each_time(
    pixels: Pixels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(method_pictures, "FOLDER", tmp_path)
    monkeypatch.setattr(method_pictures, "STEPS", 25)
    printed = []
    for _ in range(2):
        torch.rand(1)
        draw_courses(CONFIG, pixels)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
