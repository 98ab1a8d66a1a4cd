"""Texts of the command line: summaries, examples, and how to begin. Loads no other module."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SUMMARY = {
    "adapt": "Adapts a network to unlabeled images: trains all stages, evaluates each, writes "
    "a report. The same command resumes an interrupted run.",
    "check": "Checks data, weights and settings, runs a few steps of each stage, and estimates "
    "time and memory.",
    "demo": "Runs all stages on generated street scenes, in minutes on two CPU cores.",
}

EXAMPLES = {
    "adapt": (
        "cpsl adapt --config my_folders.toml",
        "cpsl adapt --config my_folders.toml --output runs/second --seed 1",
        "cpsl adapt --config my_folders.toml --online.iterations 5000",
    ),
    "check": (
        "cpsl check --config my_folders.toml",
        "cpsl check --config my_folders.toml --config one_gpu_16gb",
    ),
    "demo": ("cpsl demo", "cpsl demo --method paper --output runs/demo_paper"),
    "evaluate": (
        "cpsl evaluate --weights runs/my/model.pt --config runs/my/config.toml",
        "cpsl evaluate --weights model.pt --images photos --labels masks",
    ),
    "predict": (
        "cpsl predict --weights runs/my/model.pt --input photos --output results",
        "cpsl predict --weights model.pt --input a.jpg --output results --write colors",
    ),
    "export": (
        "cpsl export --weights runs/my/model.pt --output model.onnx",
        "cpsl export --weights model.pt --output model.pt2 --size 512 1024",
    ),
    "recipes": ("cpsl recipes cpu", "cpsl recipes gta5_to_cityscapes --complete > my_folders.toml"),
    "report": ("cpsl report runs/my",),
}
"""Commands at the end of the help."""

SMALLEST = """\
base = "cpu"                          # with a GPU: "gpu"
output = "runs/my"                    # the results
classes = ["road", "car", "plant"]    # of the label values 0, 1, 2
[source]
images = "source/images"
labels = "source/labels"              # named like the images
[target]
images = "target/images"
"""
"""The smallest file of settings of a run."""

BEGIN = (
    ("cpsl demo", "try it on generated scenes"),
    ("cpsl check --config my_folders.toml", "check files, estimate the time"),
    ("cpsl adapt --config my_folders.toml", "adapt; resumes an interrupted run"),
)
"""The first commands of somebody new, and what they do."""


def require_one_process(command: str) -> None:
    """Raises SystemExit if several processes run a command whose work is not divided among them."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise SystemExit(f"cpsl {command} runs in one process: start it without torchrun")


def how_to_begin(command: str) -> str:
    """Returns the first commands and the smallest file of settings."""
    commands = "\n".join(f"  {line:42}{what}" for line, what in BEGIN)
    smallest = "\n".join(f"  {line}" for line in SMALLEST.splitlines())
    return (
        f"cpsl {command} needs settings. To begin:\n\n{commands}\n\n"
        f"The smallest my_folders.toml:\n\n{smallest}\n\n"
        f"cpsl recipes lists ready settings, cpsl {command} --help the options."
    )


def how_to_use(command: str, needed: Sequence[str]) -> str:
    """Returns what a command needs, with examples.

    Example:
        >>> print(how_to_use("report", ["the folder of a run"]))
        cpsl report needs the folder of a run. For example:
        <BLANKLINE>
          cpsl report runs/my
        <BLANKLINE>
        cpsl demo and cpsl adapt make a run and its model.pt.
        cpsl report --help lists the options.
    """
    *others, last = needed
    listed = f"{', '.join(others)} and {last}" if others else last
    commands = "\n".join(f"  {line}" for line in EXAMPLES[command])
    return (
        f"cpsl {command} needs {listed}. For example:\n\n{commands}\n\n"
        "cpsl demo and cpsl adapt make a run and its model.pt.\n"
        f"cpsl {command} --help lists the options."
    )


def examples(command: str) -> str:
    """Returns the end of the help of a command."""
    return "\n".join(["examples:", *(f"  {line}" for line in EXAMPLES[command])])


def python() -> str:
    """Returns the command that starts this Python."""
    return "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)


def program() -> str:
    """Returns how this process was started, such as "cpsl", to print commands that work."""
    started = Path(next(iter(sys.argv), ""))
    if started.name == "__main__.py" and started.parent.name == "cpsl":
        return f"{python()} -m cpsl"
    if started.name != "cpsl" or shutil.which("cpsl") == str(started):
        return "cpsl"
    return shlex.quote(os.path.relpath(started) if started.is_absolute() else str(started))


def list_next(steps: Mapping[str, str]) -> str:
    """Returns the commands that a finished command proposes, by what they do, ready to be copied.

    Example:
        >>> print(list_next({"open the report in a browser": "runs/my/report.html"}))
        Next:
          open the report in a browser:
            runs/my/report.html
    """
    return "\n".join(["Next:", *(f"  {what}:\n    {command}" for what, command in steps.items())])


def tensorboard() -> str:
    """Returns the command that starts TensorBoard, which may be installed for this Python alone."""
    beside = Path(sys.executable).parent / "tensorboard"
    found = shutil.which("tensorboard")
    same = found is not None and (not beside.exists() or Path(found).samefile(beside))
    return "tensorboard" if same else f"{shlex.quote(sys.executable)} -m tensorboard.main"


_KEPT = {
    "adapt": "Finished stages and the last checkpoint are kept. ",
    "demo": "Finished stages and the last checkpoint are kept. ",
    "predict": "Finished images are kept. ",
}


def after_stop(command: str, options: Sequence[str]) -> str:
    """Returns what a stopped command kept, and how to continue."""
    kept = _KEPT.get(command, "")
    again = "continue" if kept else "start again"
    line = shlex.join([command, *options])
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return f"Stopped. {kept}To {again}:\n  {program()} {line}"
    processes = os.environ.get("LOCAL_WORLD_SIZE", "")
    of_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and processes.isdecimal()
    if of_torchrun and os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        return f"Stopped. {kept}To {again}:\n  torchrun --nproc_per_node={processes} -m cpsl {line}"
    return f"Stopped. {kept}To {again}, start all processes as before, of:\n  cpsl {line}"
