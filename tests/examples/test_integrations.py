"""CPSL in other people's frameworks: few lines, which do what they say and nothing else."""

import ast
import copy
import importlib
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import compare
from streets import Batch, Streets, train_on_source

NEEDS = {
    "plain_smp": "segmentation_models_pytorch",
    "segformer": "transformers",
    "timm_backbone": "timm",
    "lightning_module": "lightning",
}
ITERATIONS = 3

# The teacher is meant to be in evaluation mode; the other is Lightning's own affair.
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode", "ignore:.*LeafSpec")


@pytest.fixture(params=compare.INTEGRATIONS)
def integration(request: pytest.FixtureRequest) -> ModuleType:
    pytest.importorskip(
        NEEDS[request.param], reason=f"{NEEDS[request.param]} is of the extra 'integrations'"
    )
    return importlib.import_module(request.param)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Streets:
    return Streets(tmp_path_factory.mktemp("streets"), count=8)


@pytest.fixture(scope="module")
def batches(streets: Streets) -> list[Batch]:
    torch.manual_seed(0)
    return list(streets.batches(ITERATIONS, seed=0, batch_size=2))


def lines_of_cpsl(source: str) -> set[int]:
    """Returns the numbers of the lines that are there for CPSL: `if cpsl` and what is in it, and imports."""
    lines = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If):
            cpsl = "cpsl" in ast.unparse(node.test)
        elif isinstance(node, ast.ImportFrom):
            cpsl = node.module == "cpsl"
        else:
            continue
        if cpsl:
            assert node.end_lineno is not None
            lines |= set(range(node.lineno, node.end_lineno + 1))
    return lines


def as_diff(source: str) -> str:
    """Returns the loop of a file as its user would change it, with a + before what is new."""
    tree, lines = ast.parse(source), source.splitlines()
    (loop,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "adapt")
    assert loop.end_lineno is not None
    shown = {number: "  " + lines[number - 1] for number in range(loop.lineno, loop.end_lineno + 1)}
    for node in ast.walk(loop):
        if not isinstance(node, ast.If):
            continue
        assert node.end_lineno is not None
        # "if cpsl:" itself is dropped, "if cpsl and ...:" keeps the rest.
        always = isinstance(node.test, ast.Name)
        for number in range(node.lineno, node.end_lineno + 1):
            line = lines[number - 1].replace("cpsl and ", "")
            shown[number] = "+ " + (line.removeprefix("    ") if always else line)
        if always:
            del shown[node.lineno]
    return "\n".join(line.replace(", *, cpsl: bool", "").rstrip() for line in shown.values())


def adapted(module: Any, network: nn.Module, batches: list[Batch], cpsl: bool) -> list[Tensor]:
    torch.manual_seed(1)
    teacher = module.adapt(copy.deepcopy(network), iter(batches), cpsl=cpsl)
    return list(chain(teacher.parameters(), teacher.buffers()))


def test_cpsl_is_at_most_25_lines_more(integration: ModuleType) -> None:
    assert integration.__file__ is not None
    assert 10 < len(lines_of_cpsl(Path(integration.__file__).read_text())) <= 25


def test_the_documentation_shows_these_lines() -> None:
    source = Path(compare.__file__).with_name("plain_smp.py").read_text()
    page = Path(__file__).parents[2] / "docs" / "plug_in.md"
    assert f"```diff\n{as_diff(source)}\n```" in page.read_text()


def test_what_is_left_without_them_is_the_mean_teacher(
    integration: ModuleType, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines are all of the difference: deleted, the others run, and compute the same."""
    assert integration.__file__ is not None
    source = Path(integration.__file__).read_text()
    dropped = lines_of_cpsl(source)
    lines = enumerate(source.splitlines(), 1)
    kept = "\n".join(line for number, line in lines if number not in dropped)
    assert "lustering" not in kept
    plain: Any = ModuleType("plain")
    monkeypatch.setitem(sys.modules, "plain", plain)
    exec(compile(kept, "plain", "exec"), plain.__dict__)
    torch.manual_seed(0)
    network = integration.Network()
    expected = adapted(integration, network, batches, cpsl=False)
    got = adapted(plain, network, batches, cpsl=False)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, expected, strict=True))


def test_it_learns(
    integration: ModuleType, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}
    for name in ("ClassBalancedPrototypeClustering", "RunningClassMeans"):
        monkeypatch.setattr(integration, name, recorder(getattr(integration, name), made))
    torch.manual_seed(0)
    network = integration.Network()
    start = list(chain(network.parameters(), network.buffers()))
    averages = adapted(integration, network, batches, cpsl=True)
    assert all(value.isfinite().all() for value in averages)
    assert any(
        not torch.equal(before, after) for before, after in zip(start, averages, strict=False)
    )

    clustering, means = made["ClassBalancedPrototypeClustering"], made["RunningClassMeans"]
    per_batch = 2 * clustering.samples_per_image
    assert clustering.bank.valid.sum() == ITERATIONS * per_batch
    assert means.counts.sum() > 0
    # The optimiser has moved the prototypes away from the means that they started from, and the average less.
    seen = means.counts > 0
    began = F.normalize(means.prototypes, dim=1)[seen]
    moved = (clustering.prototypes.detach()[seen] - began).norm()
    followed = (clustering.ema_prototypes[seen] - began).norm()
    assert 0 < followed < moved < 1
    assert clustering.aligner.distribution.sum() == pytest.approx(1)
    assert not torch.allclose(clustering.aligner.distribution, means.distribution)


def recorder(kind: type, made: dict[str, Any]) -> Any:
    def build(*arguments: Any, **options: Any) -> Any:
        made[kind.__name__] = kind(*arguments, **options)
        return made[kind.__name__]

    return build


def test_networks_give_what_plugging_in_asks_for(integration: ModuleType) -> None:
    torch.manual_seed(0)
    network = integration.Network().eval()
    logits, features = network(torch.rand(2, 3, 64, 128))
    assert logits.shape[1] == 19
    assert features.shape[1] == 64
    assert logits.shape[2:] == features.shape[2:]
    # A copy remembers features of its own: the teacher is one.
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    image = torch.rand(2, 3, 64, 128)
    own, others = network(image)[1], other(image)[1]
    assert not torch.equal(own, others)
    assert torch.equal(network(image)[1], own)


def test_both_loops_see_the_same(streets: Streets) -> None:
    torch.manual_seed(0)
    first = list(streets.batches(2, seed=3))
    torch.manual_seed(0)
    second = list(streets.batches(2, seed=3))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
        assert one.source.shape == one.strong.shape == (4, 3, 64, 128)
        assert not torch.equal(one.target, one.strong)


def test_the_table(
    streets: Streets, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm", reason="timm is of the extra 'integrations'")
    monkeypatch.setattr(compare, "Streets", lambda _: streets)
    words = "compare --only timm_backbone --seeds 2 --start 2 --iterations 2"
    monkeypatch.setattr("sys.argv", words.split())
    compare.main()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in _lines(capsys)]
    assert [row[:2] for row in rows[2:]] == [
        ["timm_backbone", "0"],
        ["timm_backbone", "1"],
        ["**timm_backbone**", "mean"],
    ]
    for column in (2, 3, 4):
        values = [float(row[column]) for row in rows[2:4]]
        assert all(0 < value < 50 for value in values)
        mean, spread = map(float, rows[4][column].split("±"))
        assert mean == pytest.approx(sum(values) / 2, abs=0.11)
        assert spread == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=0.11)


def test_training_on_the_source_learns_it(streets: Streets) -> None:
    class Colors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classify = nn.Conv2d(3, 19, 1)

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            return self.classify(image), image

    torch.manual_seed(0)
    network = Colors()
    before = streets.miou(network)
    train_on_source(network, streets, 60, seed=0)
    assert streets.miou(network) > before


def _lines(capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    return (line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
