"""Calls of modules are typed: mypy finds errors in the scripts of users."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = """\
import torch

from cpsl import ClassBalancedPrototypeClustering, DistributionAligner, PseudoLabelRectifier
from cpsl.authors import AuthorsClustering
from cpsl.losses import SymmetricCrossEntropyLoss
from cpsl.models import DeepLabV2, Discriminator, ExponentialMovingAverage

x = torch.rand(1, 3, 32, 32)
model = DeepLabV2(3)
teacher = ExponentialMovingAverage(model)
rectifier = PseudoLabelRectifier()
clustering = ClassBalancedPrototypeClustering(3)
authors = AuthorsClustering(3)
aligner = DistributionAligner(3)

model(x).logits
model(x).logit  # error
teacher(x).features
teacher(x).feature  # error
rectifier(x, x, x).labels
rectifier(x, x, x).lables  # error
rectifier(x, x)  # error
clustering(x, labels=x).assignments
clustering(x, labels=x).assignment  # error
clustering(x, logits=x)  # error
authors(x, logits=x).logits
authors(x, logits=x).logit  # error
aligner(x, epsilon=0.1).sum()
aligner(x, epsilon="0.1")  # error
Discriminator(3)(x).mean()
Discriminator(3)(x).maen()  # error
SymmetricCrossEntropyLoss(ce_weight=0.1)(x, x).backward()
SymmetricCrossEntropyLoss(ce_weight=0.1)(x)  # error
"""


def test_mypy_accepts_correct_calls_and_rejects_wrong_ones(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(script)]
    root = Path(__file__).parents[1]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300).stdout
    found = {int(line) for line in re.findall(r"script\.py:(\d+): error:", output)}
    lines = enumerate(SCRIPT.splitlines(), start=1)
    assert found == {number for number, line in lines if line.endswith("# error")}, output
