from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from config import Config, parse
from cpsl.engine import Process
from stage import STAGES, begin_run, friendly_errors, run_stage, stages_of

HERE = Process(torch.device("cpu"))


def settings(folder: Path, *options: str) -> Config:
    images = ["--source.images", "a", "--target.images", "b"]
    return parse(Config, ["--output", str(folder), "--device", "cpu", *images, *options])


def test_errors_of_data_and_files_are_one_line() -> None:
    error = ValueError("a.png is broken")
    error.add_note("while reading the source")
    with (
        pytest.raises(SystemExit, match=r"error: a\.png is broken\nwhile reading the source\n"),
        friendly_errors(),
    ):
        raise error


class Broken(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise FileNotFoundError("there is no file a.png")


def test_errors_of_loading_processes_are_those_of_the_file() -> None:
    with pytest.raises(SystemExit) as told, friendly_errors():
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert str(told.value).splitlines()[0] == "error: there is no file a.png"
    assert "Traceback" not in str(told.value)


@pytest.mark.parametrize(("kind", "debug"), [(ValueError, True), (KeyError, False)])
def test_errors_of_the_program_show_where_they_are(kind: type[Exception], debug: bool) -> None:
    with pytest.raises(kind), friendly_errors(debug):
        raise kind("here")


def test_settings_can_be_mended_until_there_is_something_to_lose(tmp_path: Path) -> None:
    for batch_size in (4, 8):
        with begin_run(settings(tmp_path, "--warmup.batch-size", str(batch_size))):
            pass
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "checkpoint.pt").touch()
    mended = settings(tmp_path, "--warmup.batch-size", "4", "--seed", "1", "--workers", "0")
    with pytest.raises(SystemExit) as refused, begin_run(mended):
        pass
    lines = str(refused.value).splitlines()
    assert "  warmup.batch_size: 8 then, 4 now" in lines
    assert "  seed: 0 then, 1 now" in lines
    assert "workers" not in str(refused.value)
    with begin_run(settings(tmp_path, "--warmup.batch-size", "8", "--workers", "0")):
        pass


def test_random_starts_are_those_of_seed_and_stage(tmp_path: Path) -> None:
    class DrawnError(Exception):
        pass

    def draw(config: Config, stage: str) -> torch.Tensor:
        drawn = []

        def train(config: Config, process: Process) -> float:
            drawn.append(torch.rand(4))
            raise DrawnError

        torch.rand(3)  # whatever happened before must not matter
        with pytest.raises(DrawnError):
            run_stage(stage, train, config, HERE)
        return drawn[0]

    first = draw(settings(tmp_path), "warmup")
    assert torch.equal(draw(settings(tmp_path), "warmup"), first)
    assert not torch.equal(draw(settings(tmp_path), "distill_1"), first)
    assert not torch.equal(draw(settings(tmp_path, "--seed", "1"), "warmup"), first)


def test_stages_before_a_given_model_are_left_out(tmp_path: Path) -> None:
    assert stages_of(settings(tmp_path)) == STAGES
    assert stages_of(settings(tmp_path, "--given.warmup", "a.pkl")) == STAGES[1:]
    both = settings(tmp_path, "--given.warmup", "a.pkl", "--given.distill-1", "b.pt")
    assert stages_of(both) == ("distill_1", "distill_2")
