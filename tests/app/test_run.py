import errno
import os
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from app.tiny import cpsl
from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.app.errors import friendly_errors
from cpsl.app.run import begin_run, changed_settings, run_stage
from cpsl.app.stages import position_of
from cpsl.training import Cost, Process, logger, start_logging

PROCESS = Process(torch.device("cpu"))


def settings(folder: Path, *options: str) -> Config:
    images = ["--source.images", "a", "--target.images", "b"]
    return parse(["--output", str(folder), "--method", "paper", "--device", "cpu", *images, *options])


def test_errors_of_data_and_files_have_no_traceback() -> None:
    error = ValueError("a.png is broken")
    error.add_note("while reading the source")
    with pytest.raises(SystemExit, match=r"a\.png is broken\nwhile reading the source"), friendly_errors():
        raise error


@pytest.mark.parametrize("kind", [ImportError, ModuleNotFoundError])
def test_a_missing_library_has_no_traceback(kind: type[ImportError]) -> None:
    with pytest.raises(SystemExit, match="pip install timm"), friendly_errors():
        raise kind("from_timm requires timm: pip install timm")


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_errors_of_the_system_name_the_file_and_not_their_number(number: int) -> None:
    for arguments in ((number, os.strerror(number), "runs/a"), (number, os.strerror(number))):
        with pytest.raises(SystemExit) as ended, friendly_errors():
            raise OSError(*arguments)
        assert "Errno" not in str(ended.value)
        assert os.strerror(number) in str(ended.value)
        assert ("runs/a" in str(ended.value)) == (len(arguments) == 3)


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "free space"), (errno.EACCES, "choose another folder")]
)
def test_common_errors_of_the_system_say_what_to_do(number: int, advice: str) -> None:
    with pytest.raises(SystemExit, match=advice), friendly_errors():
        raise OSError(number, os.strerror(number), "runs/a")


def test_the_log_of_a_run_ends_with_its_error(tmp_path: Path) -> None:
    start_logging(tmp_path, PROCESS)
    with pytest.raises(SystemExit), friendly_errors():
        raise ValueError("image 7 is empty")
    logger.handlers.clear()
    assert (tmp_path / "log.txt").read_text().endswith("ERROR error: image 7 is empty\n")


class Broken(Dataset[int]):
    def __init__(self, *of_system: object) -> None:
        self.of_system = of_system

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        error = OSError(*(self.of_system or ["there is no file a.png"]))
        error.add_note("This happened while reading the source.")
        raise error


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ((), "there is no file a.png"),
        ((errno.EIO, "Input/output error", "it's/a.png"), "it's/a.png: .*try again.*Input"),
        ((errno.EMFILE, "Too many open files"), r"--workers.*Too many open"),
    ],
)
def test_errors_in_a_loading_process_are_reported_as_its_own(
    arguments: tuple[object, ...], advice: str
) -> None:
    with pytest.raises(SystemExit) as error, friendly_errors():
        next(iter(DataLoader(Broken(*arguments), num_workers=1)))
    first, note, *_ = str(error.value).splitlines()
    assert re.search(advice, first)
    assert "Errno" not in first
    assert note == "This happened while reading the source."
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(("kind", "debug"), [(ValueError, True), (KeyError, False)])
def test_other_errors_and_debugging_keep_the_traceback(kind: type[Exception], debug: bool) -> None:
    with pytest.raises(kind), friendly_errors(debug):
        raise kind("here")


def test_settings_may_change_until_the_first_checkpoint(tmp_path: Path) -> None:
    for batch_size in (4, 8):
        with begin_run(settings(tmp_path, "--warmup.batch-size", str(batch_size))):
            pass
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "checkpoint.pt").touch()
    changed = settings(tmp_path, "--warmup.batch-size", "4", "--seed", "1", "--workers", "0")
    with pytest.raises(SystemExit) as refused, begin_run(changed):
        pass
    lines = str(refused.value).splitlines()
    assert "  warmup.batch_size: 8 then, 4 now" in lines
    assert "  seed: 0 then, 1 now" in lines
    assert "workers" not in str(refused.value)
    with begin_run(settings(tmp_path, "--warmup.batch-size", "8", "--workers", "0")):
        pass


RESULTS = (
    "warmup/checkpoint.pt.2",
    "warmup/metrics.json",
    "pseudo_labels/soft/a.npz",
    "distill_1/labels/a.png",
)


@pytest.mark.parametrize("result", RESULTS)
def test_every_result_locks_the_settings(tmp_path: Path, result: str) -> None:
    with begin_run(settings(tmp_path, "--views.crop", "64", "64")):
        pass
    (tmp_path / result).parent.mkdir(parents=True)
    (tmp_path / result).touch()
    with pytest.raises(SystemExit, match=r"views\.crop"), begin_run(settings(tmp_path)):
        pass


def test_a_network_from_a_file_that_was_not_evaluated_locks_nothing(tmp_path: Path) -> None:
    """Ids of the evaluation that do not fit end a run after its network was copied, for example."""
    with begin_run(settings(tmp_path, "--init-from.warmup", "a.pt")):
        pass
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "model.pt").touch()
    assert not changed_settings(settings(tmp_path, "--init-from.warmup", "b.pt", "--seed", "1"))


@pytest.mark.parametrize("select", ["last", "score", "best"])
@pytest.mark.parametrize(
    "option",
    [
        "--evaluation.ids=1 0",
        "--evaluation.max-images=3",
        "--views.evaluation-size=64 128",
        "--evaluation.images=c",
    ],
)
def test_settings_of_the_evaluation_may_change_unless_it_selects_weights(
    tmp_path: Path, option: str, select: str
) -> None:
    name, _, values = option.partition("=")
    images = ["--evaluation.images", "e", "--select-checkpoint", select]
    with begin_run(settings(tmp_path, *images)):
        pass
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "checkpoint.pt").touch()
    changed = changed_settings(settings(tmp_path, *images, name, *values.split()))
    assert bool(changed) == (select != "last")
    assert changed_settings(settings(tmp_path, *images, name, *values.split(), "--seed", "1"))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.9])
def test_stored_settings_that_were_cut_off_are_named(tmp_path: Path, kept: float) -> None:
    with begin_run(settings(tmp_path)):
        pass
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "checkpoint.pt").touch()
    stored = tmp_path / "config.toml"
    whole = stored.read_text(encoding="utf-8").split("\n[")
    stored.write_text("\n[".join(whole[: int(kept * len(whole))]), encoding="utf-8")
    with pytest.raises(SystemExit) as refused, begin_run(settings(tmp_path)):
        pass
    assert "config.toml" in str(refused.value)
    assert "absent then" in str(refused.value)
    assert "None then" not in str(refused.value)


def test_random_initial_weights_depend_on_seed_and_stage_alone(tmp_path: Path) -> None:
    class TrainedError(Exception):
        pass

    def sample(config: Config, stage: str) -> torch.Tensor:
        sampled = []

        def train(config: Config, process: Process) -> Cost:
            sampled.append(torch.rand(4))
            raise TrainedError

        torch.rand(3)  # the state before must not matter
        with pytest.raises(TrainedError):
            run_stage(stage, train, config, PROCESS)
        return sampled[0]

    first = sample(settings(tmp_path), "warmup")
    assert torch.equal(sample(settings(tmp_path), "warmup"), first)
    assert not torch.equal(sample(settings(tmp_path), "distill_1"), first)
    assert not torch.equal(sample(settings(tmp_path, "--seed", "1"), "warmup"), first)


def test_iterations_of_later_stages_count_by_what_they_cost(tmp_path: Path) -> None:
    """A step of online adaptation takes longer than one on the source alone: the time left has to know."""
    online = ["--source-only.iterations", "300", "--online.iterations", "300", "--method", "online"]
    sizes = ["--source-only.batch-size", "2", "--online.batch-size", "2"]
    none = "--online.masked-weight=0"
    first, masked, larger = (
        position_of("source_only", settings(tmp_path, *online, *sizes, *options))
        for options in ([none], [f"{none[:-1]}1"], [none, "--online.batch-size=4"])
    )
    assert (first.number, first.stages) == (1, 2)
    assert 300 < first.later_iterations < masked.later_iterations
    assert larger.later_iterations == 2 * first.later_iterations
    assert position_of("online", settings(tmp_path, *online)).later_iterations == 0
    paper = settings(tmp_path)
    assert position_of("warmup", paper).later_iterations > position_of("self_label", paper).later_iterations


def test_a_wrong_network_ends_a_run_before_scenes_are_generated(tmp_path: Path) -> None:
    ended = cpsl("demo", "--model.network", "nosuch", "--output", tmp_path / "run")
    assert ended.code == 1
    assert "model.network: the network 'nosuch' cannot be imported" in ended.text
    assert "generated street scenes" not in ended.text
    assert not (tmp_path / "run" / "config.toml").exists()
