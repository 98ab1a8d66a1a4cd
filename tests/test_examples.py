"""Each example runs as its header says, on a CPU and with small arguments, and trains something."""

import ast
import importlib.util
import os
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cpsl import ClassBalancedPrototypeClustering, DiceThresholds, Segmenter, ShareLimits, class_counts
from cpsl.app.command_line import parse
from cpsl.app.datasets import open_dataset, target_dataset
from cpsl.data import (
    CITYSCAPES_19,
    GTA5,
    Cityscapes,
    SourceViews,
    StrongAugmentation,
    TargetViews,
    WeakView,
    training_loader,
    write_streets,
)
from cpsl.methods import OnlineSelfLabeling
from cpsl.models import ExponentialMovingAverage, build_network, parameter_groups

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
STEPS = 2

# The teacher stays in evaluation mode on purpose; the other is Lightning's own affair.
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode", "ignore:.*LeafSpec")


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Returns folders in the layouts of GTA5 and Cityscapes."""
    folder = tmp_path_factory.mktemp("streets")
    source, target = folder / "gta5", folder / "cityscapes"
    size = (64, 128)
    write_streets(source, layout="gta5", style="game", count=4, size=size)
    for split in ("train", "val"):
        write_streets(target, layout="cityscapes", style="real", count=3, split=split, size=size)
    return str(source), str(target)


@pytest.fixture(scope="module")
def run_of_all_stages(streets: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the output of gta5_to_cityscapes.py."""
    output = tmp_path_factory.mktemp("run")
    source, target = streets
    words = ["--gta5", source, "--cityscapes", target, "--output", str(output)]
    words += ["--network", "deeplabv2:resnet_tiny", "--weights", "random", "--height", "64"]
    execute("gta5_to_cityscapes", *words, "--iterations", str(STEPS), "--workers", "0")
    return output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


Step = tuple[OnlineSelfLabeling, dict[str, Tensor]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Returns a list that receives the method and its metrics after every step."""
    recorded: list[Step] = []
    update = OnlineSelfLabeling.update

    def update_and_record(method: OnlineSelfLabeling, applied: Tensor | None = None) -> None:
        update(method, applied)
        recorded.append((method, dict(method.metrics)))

    monkeypatch.setattr(OnlineSelfLabeling, "update", update_and_record)
    return recorded


def execute(name: str, *words: str) -> dict[str, Any]:
    """Runs an example as its user would, but in this process; returns its names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *words])
        return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def check_training(steps: list[Step], pixels_per_step: int = 512) -> None:
    """Checks that the student, its average and the prototypes were trained with finite losses."""
    assert len(steps) == STEPS
    for _, metrics in steps:
        assert {"loss_source", "loss_target", "loss_contrast"} <= metrics.keys()
        assert all(value.isfinite() for value in metrics.values())
    method: Any = steps[-1][0]
    pairs = zip(method.student.parameters(), method.teacher.module.parameters(), strict=True)
    assert not all(torch.equal(mine, average) for mine, average in pairs)
    begin = torch.nn.functional.normalize(method.initial.means.prototypes, dim=1)
    assert (method.clustering.prototypes - begin).abs().max() > 1e-6
    assert method.clustering.bank.valid.sum() == STEPS * pixels_per_step


def check_finite(state: dict[str, Tensor]) -> None:
    assert state
    assert all(value.isfinite().all() for value in state.values())


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def test_every_file_has_a_test() -> None:
    files = {path.stem for path in EXAMPLES.iterdir() if path.suffix not in (".md", "")}
    assert 0 < len(files) <= 12
    tested = {name.removeprefix("test_example_") for name in globals()}
    assert files <= tested


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_an_example_is_short_and_needs_installed_packages_only(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 130
    assert "sys.path" not in source
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").partition(".")[0])
    siblings = {other.stem for other in PROGRAMS} | {"benchmarks", "examples", "tests"}
    assert not imported & siblings
    assert path.name in source  # the header has the command


def test_example_gta5_to_cityscapes(run_of_all_stages: Path) -> None:
    stages = ["warmup", "self_label", "distill_1", "distill_2"]
    models = [Segmenter.load(run_of_all_stages / stage / "model.pt") for stage in stages]
    assert all(model.full_size == (64, 128) for model in models)
    assert all(model.classes == CITYSCAPES_19 for model in models)
    for before, after in pairwise(models):
        pairs = zip(before.model.parameters(), after.model.parameters(), strict=True)
        assert not all(torch.equal(old, new) for old, new in pairs)
    start = load(run_of_all_stages / "pseudo_labels" / "start.pt")
    assert start["prototypes"].shape == (19, 256)
    assert start["class_distribution"].sum() == pytest.approx(1)


# Runs an example and saves the weights that this process ends with.
WRAPPER = """
import os, runpy, sys, torch
example = runpy.run_path(sys.argv.pop(1))
names = example["main"].__globals__
train = names["train"]
def train_and_save(*arguments):
    student = train(*arguments)
    torch.save(dict(student.named_parameters()), f"rank{os.environ['RANK']}.pt")
names["train"] = train_and_save
example["main"]()
"""


def test_example_self_labeling_ddp(streets: tuple[str, str], run_of_all_stages: Path, here: Path) -> None:
    (here / "wrapper.py").write_text(WRAPPER)
    source, target = streets
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = ["--warmup-run", str(run_of_all_stages), "--gta5", source, "--cityscapes", target]
    words += ["--iterations", str(STEPS), "--workers", "0"]
    subprocess.run(
        [*torchrun, "wrapper.py", str(EXAMPLES / "self_labeling_ddp.py"), *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    first, second = load(here / "rank0.pt"), load(here / "rank1.pt")
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    before = dict(Segmenter.load(run_of_all_stages / "warmup" / "model.pt").model.named_parameters())
    after = dict(Segmenter.load(here / "self_labeled.pt").model.named_parameters())
    check_finite(after)
    assert all(torch.equal(first[name], after[name]) for name in after)
    assert not torch.equal(before["head.classify.weight"], after["head.classify.weight"])


@pytest.fixture
def students(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Returns a list that receives the weights of the student after every step."""
    recorded: list[dict[str, Tensor]] = []
    update = ExponentialMovingAverage.update

    def update_and_record(teacher: Any, student: torch.nn.Module, *rest: Any) -> None:
        update(teacher, student, *rest)
        recorded.append({name: value.detach().clone() for name, value in student.named_parameters()})

    monkeypatch.setattr(ExponentialMovingAverage, "update", update_and_record)
    return recorded


def test_example_online(
    streets: tuple[str, str],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    students: list[dict[str, Tensor]],
) -> None:
    names = execute("online", *streets, "--height", "64", "--steps", str(STEPS))
    loss = float(capsys.readouterr().out.split("loss ")[1].split(",")[0])
    assert 0 < loss < 10
    network = Segmenter.load(here / "online.pt").network
    assert network.spec is not None
    assert network.spec.name == "lite0"
    check_finite(network.state_dict())
    torch.manual_seed(0)
    start, weight = names["build_network"]("lite0", 19).state_dict(), "body.encoder.conv_stem.weight"
    assert 0 < (network.state_dict()[weight] - start[weight]).abs().max() < 0.1
    # The method as a module takes the same steps.
    train_by_the_module(*streets)
    assert len(students) == 2 * STEPS
    torch.testing.assert_close(students[STEPS:], students[:STEPS], rtol=0, atol=1e-6)


def train_by_the_module(source: str, target: str) -> None:
    torch.manual_seed(0)
    view = WeakView.of_size((64, 128))
    strong = StrongAugmentation(jitter=0.25, operations=0, cutout=0)
    labeled, unlabeled = GTA5(source), Cityscapes(target)
    sources = training_loader(SourceViews(labeled, view, style_from=unlabeled), 2, seed=0)
    targets = training_loader(TargetViews(unlabeled, view, strong), 2, seed=1)
    student = build_network("lite0", num_classes=19)
    clustering = ClassBalancedPrototypeClustering(
        19,
        student.feature_dim,
        bank_size=16_384,
        samples_per_image=512,
        temperature=0.1,
        sampling="stratified",
        prototype_update="labels",
        align_corners=student.align_corners,
    )
    counts = sum(class_counts(item.label, 19) for item in labeled if item.label is not None)
    method = OnlineSelfLabeling(
        student,
        ExponentialMovingAverage(student),
        clustering,
        DiceThresholds(19),
        ShareLimits(torch.as_tensor(counts)),
    )
    optimizer = torch.optim.AdamW(parameter_groups(student, 6e-5))
    for _, *batch in zip(range(STEPS), sources, targets, strict=False):
        for loss in method.losses(*batch):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.update()


@pytest.mark.parametrize("network", ["smp:FPN/tu-mobilenetv3_small_050", "timm:regnetx_002"])
def test_example_any_network(streets: tuple[str, str], here: Path, steps: list[Step], network: str) -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="extra networks")
    pytest.importorskip("timm", reason="extra networks")
    small = ["--network", network, "--weights", "random", "--height", "64"]
    execute("any_network", *streets, *small, "--steps", str(STEPS))
    check_training(steps)
    segmenter = Segmenter.load(here / "any_network.pt")
    check_finite(segmenter.model.state_dict())
    trained: Any = steps[-1][0]
    state = segmenter.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in trained.teacher.module.state_dict().items())


def test_example_lightning_module(streets: tuple[str, str], here: Path, steps: list[Step]) -> None:
    pytest.importorskip("lightning", reason="extra lightning")
    execute("lightning_module", *streets, "--height", "64", "--steps", str(STEPS))
    check_training(steps)
    checkpoint = torch.load(here / "lightning_module.ckpt", weights_only=False)
    assert checkpoint["global_step"] == STEPS


def test_example_test_my_loss() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_loss.py"],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "45 passed" in done.stdout


def test_example_my_folders(tmp_path: Path) -> None:
    """With the folders of the template filled in, its classes and stored numbers are read."""
    for folder in ("source/images", "source/labels", "target/images"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (64, 32)).save(tmp_path / "source" / "images" / "a.jpg")
    Image.new("RGB", (64, 32)).save(tmp_path / "target" / "images" / "b.png")
    Image.new("L", (64, 32), 23).save(tmp_path / "source" / "labels" / "a.png")
    text = (EXAMPLES / "my_folders.toml").read_text()
    text = text.replace("data/mine", tmp_path.as_posix()).replace("# ids", "ids", 1)
    config_file = tmp_path / "my_folders.toml"
    config_file.write_text(text)

    config = parse(["--config", str(config_file)], "adapt")
    source, target = open_dataset(config, config.source), target_dataset(config)
    assert source.label_space.names == ("road", "building", "sky", "car")
    label = source[0].label
    assert label is not None
    assert label.unique().tolist() == [2]  # 23 is sky
    assert target.names == ["b"]
    assert not config.evaluation.given


# What stands for Slurm: as many tasks as asked for at once; srun exits with the largest of their codes.
SRUN = """#!/bin/bash
[[ $1 == --wait=* ]] && shift
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=$SLURM_NTASKS "$@" &
    tasks[task]=$!
done
largest=0
for pid in "${tasks[@]}"; do
    wait "$pid"
    code=$?
    ((code > largest)) && largest=$code
done
exit $largest
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> scontrol.txt; fi
"""
PROGRAM = """
import sys
from pathlib import Path
from cpsl.training import start_process
with start_process("cpu") as process:
    assert process.gather(process.rank) == [0, 1]
    Path(f"rank{process.rank}.txt").write_text(" ".join(sys.argv[1:]))
    code = CODE if process.rank == 1 else 0
sys.exit(code)
"""


@pytest.mark.parametrize("code", [1, 75])
def test_example_adapt(tmp_path: Path, code: int) -> None:
    """The job script starts processes that find each other, and queues a stopped run again."""
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    (tmp_path / "program.py").write_text(PROGRAM.replace("CODE", str(code)))
    (commands / "activate").write_text(f"export PATH={commands}:$PATH\n")
    python = f'#!/bin/bash\nexec {sys.executable} program.py "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    words = ["--config", "a file.toml"]
    done = subprocess.run(
        ["bash", str(EXAMPLES / "adapt.sbatch"), *words],
        env={**os.environ, **slurm, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    called = " ".join(["-m", "cpsl", "adapt", *words])
    assert [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)] == [called] * 2
    requeued = tmp_path / "scontrol.txt"
    assert requeued.exists() == (code == 75)
    if code == 75:
        assert requeued.read_text().split() == ["requeue", slurm["SLURM_JOB_ID"]]


def test_the_comparison_of_networks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning", reason="extra lightning")
    pytest.importorskip("timm", reason="extra networks")
    spec = importlib.util.spec_from_file_location("integrations", ROOT / "benchmarks" / "integrations.py")
    assert spec is not None
    assert spec.loader is not None
    comparison: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(comparison)
    streets = comparison.Streets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "Streets", lambda root: streets(root, count=8))
        words = "--only timm --seeds 2 --start 2 --iterations 2"
        patch.setattr(sys, "argv", ["integrations.py", *words.split()])
        comparison.main()
    printed = (line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in printed][2:]
    assert [row[:2] for row in rows] == [["timm", "0"], ["timm", "1"], ["**timm**", "mean"]]
    for column in (2, 3, 4):
        values = [float(row[column]) for row in rows[:2]]
        assert all(0 < value < 50 for value in values)
        mean, spread = map(float, rows[2][column].split("±"))
        assert mean == pytest.approx(sum(values) / 2, abs=0.11)
        assert spread == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=0.11)
