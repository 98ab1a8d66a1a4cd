"""`cpsl demo`: `cpsl adapt` with the recipe `demo`."""

from cpsl.app import adapt


def main(arguments: list[str]) -> None:
    """Runs `cpsl demo`."""
    adapt.main(arguments, "demo", base=("demo",))
