"""The command `cpsl`, also as `python -m cpsl` and `torchrun -m cpsl`."""

import atexit
import errno
import gc
import os
import sys
import traceback
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from cpsl._internal import loading
from cpsl._internal.interrupts import INTERRUPTED_EXIT_CODE, STOPPED_EXIT_CODES, keyboard_interrupts
from cpsl._internal.output import be_patient

COMMANDS = {
    "adapt": "adapt a network to unlabeled images: all stages, then a report",
    "check": "check data, weights and settings, and estimate time and memory",
    "demo": "run all stages on generated street scenes, in minutes on a CPU",
    "recipes": "list the recipes, or print one",
    "evaluate": "compute the IoU of a model on labeled images",
    "predict": "segment images, folders and videos with a model",
    "export": "write a model for ONNX, torch.export or the authors' code",
    "report": "regenerate the report of a run",
}

PACKAGES = ("jinja2", "pydantic", "tensorboard", "tomli_w", "tqdm", "tyro")
"""Packages that the commands need besides the core dependencies."""

_LIST = "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())

USAGE = f"""usage: cpsl COMMAND [OPTIONS]

Unsupervised domain adaptation of semantic segmentation.

{_LIST}

To begin: cpsl demo, or for your own images: cpsl adapt
cpsl COMMAND --help lists the options of a command.
Several processes: torchrun --nproc_per_node=N -m cpsl adapt OPTIONS"""


def main(arguments: list[str] | None = None) -> None:
    """Runs a command with its options, by default those of the process.

    Raises:
        SystemExit: The command does not succeed. The exit code is 2 for wrong options and settings, 130 after
            Ctrl-C, 75 for a run that SIGTERM or SIGHUP stopped, 1 otherwise.
    """
    if arguments is None:  # the process is the command's own
        be_patient()
        arguments = sys.argv[1:]
    try:
        try:
            _main(*(arguments or ["--help"]))
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC or "--debug" in arguments:
            raise
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # what is buffered would fail again at exit
        raise SystemExit("error: the disk is full on which the standard output is written") from None


def _main(command: str, *options: str) -> None:
    try:
        module = _load(command) if command in COMMANDS else None
    finally:
        loading.erase()
    if module is not None:
        _run(module, command, list(options))
    elif command in ("-h", "--help", "help"):
        print(USAGE)
    elif command == "--version":
        from cpsl import __version__

        print(f"cpsl {__version__}")
    else:
        close = get_close_matches(command, [*COMMANDS, "--version"], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"cpsl has no command {command}{hint}\n\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)


def _load(command: str) -> ModuleType:
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise SystemExit(
            f"cpsl {command} needs {', '.join(missing)}: pip install 'cpsl[train]', or '.[train]' in a clone"
        )
    atexit.register(gc.freeze)  # a search for garbage in thousands of modules delays the end by seconds
    return import_module(f"cpsl.app.{command}")


def _run(module: ModuleType, command: str, options: list[str]) -> None:
    from cpsl._internal.terminal import fit
    from cpsl.app.settings import UsageError
    from cpsl.app.usage import after_stop

    try:
        with keyboard_interrupts():
            module.main(options)
    except UsageError as error:
        print(fit(str(error), sys.stderr), file=sys.stderr)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, SystemExit) as error:
        code = error.code if isinstance(error, SystemExit) else INTERRUPTED_EXIT_CODE
        if isinstance(code, str):
            print(fit(code, sys.stderr), file=sys.stderr)
            raise SystemExit(1) from None
        if code not in STOPPED_EXIT_CODES:
            raise
        if os.environ.get("RANK", "0") == "0":
            after_echo = "\n" if sys.stderr.isatty() else ""  # a terminal has written ^C
            print(f"{after_echo}{after_stop(command, options)}", file=sys.stderr)
        # Frees the loaders, whose processes end at once; torch waits for them for 5 seconds at exit.
        traceback.clear_frames(error.__traceback__)
        raise SystemExit(code) from None


if __name__ == "__main__":
    main()
