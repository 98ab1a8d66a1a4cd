from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from cpsl import prototype_similarity
from cpsl.app.command_line import parse

plt.switch_backend("agg")
spec = spec_from_file_location("method_pictures", Path(__file__).parents[1] / "docs" / "method_pictures.py")
assert spec is not None
assert spec.loader is not None
method_pictures: Any = module_from_spec(spec)
spec.loader.exec_module(method_pictures)
NEAREST, UNIFORM, ALIGNED = (method_pictures.NEAREST, method_pictures.UNIFORM, method_pictures.ALIGNED)
CONFIG = parse(
    [
        *("--output", "runs/none", "--source.images", "a", "--target.images", "b"),
        *("--views.full-size", "64", "128", "--views.crop", "48", "96", "--views.width", "130"),
    ]
)


@pytest.fixture
def pixels() -> Any:
    """Returns features that are noisy prototypes of the ground truth."""
    torch.manual_seed(0)
    prototypes = torch.nn.functional.normalize(torch.randn(19, 16), dim=1)
    labels = torch.randint(19, (9, 8, 16))
    labels[torch.rand(labels.shape) < 0.8] = 0  # the other classes are rare
    features = prototypes[labels].movedim(-1, 1) + 0.3 * torch.randn(9, 16, 8, 16)
    logits = torch.einsum("bdhw,kd->bkhw", features, prototypes)
    return method_pictures.Pixels(
        torch.randint(256, (9, 3, 64, 128), dtype=torch.uint8),
        features,
        logits.softmax(dim=1),
        labels,
        prototypes,
        torch.bincount(labels.flatten(), minlength=19) / labels.numel(),
        False,
    )


def test_the_assignments_differ_in_the_class_sizes(pixels) -> None:
    scores = torch.randn(4000, 19) / 50  # so similar that three iterations suffice
    assign = method_pictures.assignments_of(pixels.delta)
    sizes = {kind: function(scores).mean(dim=0) for kind, function in assign.items()}
    torch.testing.assert_close(sizes[UNIFORM], torch.full((19,), 1 / 19), atol=1e-3, rtol=0)
    torch.testing.assert_close(sizes[ALIGNED], pixels.delta, atol=5e-3, rtol=0)
    assert sizes[NEAREST].sum() == pytest.approx(1)


def test_quality_does_not_count_ignored_pixels() -> None:
    quality = method_pictures.quality(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 255]), 2)
    assert quality == ("66.7", "50.0")


def test_all_pictures_are_drawn(pixels, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(method_pictures, "FOLDER", tmp_path)
    monkeypatch.setattr(method_pictures, "STEPS", 50)
    scores = prototype_similarity(pixels.flat()[0], pixels.prototypes)
    assigned = {kind: assign(scores) for kind, assign in method_pictures.assignments_of(pixels.delta).items()}
    method_pictures.draw_class_sizes(CONFIG, pixels, assigned)
    method_pictures.draw_assignments(CONFIG, pixels, assigned)
    method_pictures.draw_rare_classes(CONFIG, pixels)
    method_pictures.draw_views(CONFIG, pixels)
    names = {"assignments.jpg", "class_sizes.png", "rare_classes.png", "views.jpg"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert picture.width > 250
            colors = picture.convert("RGB").getcolors(1 << 20)
            assert colors is None or len(colors) > 8
    printed = capsys.readouterr().out
    assert "assigned to their class" in printed
    assert "after the last step" in printed


def test_the_figures_are_reproducible(pixels, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(method_pictures, "FOLDER", tmp_path)
    monkeypatch.setattr(method_pictures, "STEPS", 25)
    printed = []
    for _ in range(2):
        torch.rand(1)
        method_pictures.draw_rare_classes(CONFIG, pixels)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
