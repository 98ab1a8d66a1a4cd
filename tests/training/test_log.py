import logging
from pathlib import Path

import torch

from cpsl.training import Process, logger, start_logging
from cpsl.training.log import stop_logging

PROCESS = Process(torch.device("cpu"))


def files() -> list[logging.FileHandler]:
    return [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]


def test_a_log_is_closed_before_the_next_one_and_at_the_end(tmp_path: Path) -> None:
    opened = []
    for name in ("a", "b"):
        start_logging(tmp_path / name, PROCESS)
        opened += files()
        logger.info(f"message of {name}")
    assert len(opened) == 2
    assert opened[0].stream is None
    assert files() == opened[1:]
    stop_logging()
    assert opened[1].stream is None
    logger.info("a message for the terminal")
    assert [(tmp_path / name / "log.txt").read_text().split()[-1] for name in ("a", "b")] == ["a", "b"]
    logger.handlers.clear()
