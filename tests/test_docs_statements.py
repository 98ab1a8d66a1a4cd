"""Statements of the pages that are easily forgotten when the code changes."""

import re
from pathlib import Path

import pytest
import torch

from cpsl import Segmenter
from cpsl.app.command_line import read_layers
from cpsl.app.networks import describe_network
from cpsl.app.run import FREE_SETTINGS
from cpsl.data import CITYSCAPES_19
from cpsl.models import DeepLabV2
from cpsl.training import Process

DOCS = Path(__file__).parents[1] / "docs"


def code_in(page: str, start: str) -> set[str]:
    """Returns the code in the sentence of a page that begins with some words."""
    sentence = re.search(re.escape(start) + r"(.*?[^.]\.)(?:\s|$)", (DOCS / page).read_text(encoding="utf-8"))
    assert sentence is not None, start
    return set(re.findall(r"`(\w+)`", sentence[1]))


def test_the_faq_lists_the_entries_of_a_model_file(tmp_path: Path) -> None:
    Segmenter(DeepLabV2(19, "resnet_tiny", 8).eval(), CITYSCAPES_19, (32, 64)).save(tmp_path / "model.pt")
    entries = torch.load(tmp_path / "model.pt", weights_only=True)
    assert code_in("faq.md", "A dictionary of tensors and plain values") == set(entries)


def test_the_faq_lists_the_settings_that_may_change_in_a_run() -> None:
    listed = code_in("faq.md", "Once there are results, changed settings are refused, except")
    assert listed == set(FREE_SETTINGS) - {"output"}  # another folder is another run


def test_the_description_of_a_network_is_that_of_the_check(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="extra networks")
    page = (DOCS / "networks.md").read_text(encoding="utf-8")
    settings = re.search(r"```toml\n(\[model\]\nnetwork = \"timm:.*?)```", page, re.S)
    shown = re.search(r"```\n(network: .*?)```", page, re.S)
    assert settings is not None
    assert shown is not None
    (tmp_path / "docs.toml").write_text(settings[1], encoding="utf-8")
    line = describe_network(read_layers([str(tmp_path / "docs.toml")]), Process(torch.device("cpu")))
    assert shown[1].split() == line.split()
