"""`cpsl demo`: `cpsl adapt` with the recipe `demo`."""

from cpsl.app import adapt
from cpsl.app.command_line import recipe


def main(arguments: list[str]) -> None:
    """Runs `cpsl demo`."""
    adapt.main(arguments, "demo", base=(str(recipe("demo")),))
