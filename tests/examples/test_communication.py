"""The cost model says how many bytes the processes of a run tell each other."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from communication import Arguments, Sizes, count, predict, sizes

TINY = Arguments(feature_dim=8, bank_size=256, parts=2)


def test_what_is_counted_is_what_the_formula_says() -> None:
    counted = count("self_label", 2, TINY)
    wanted = predict("self_label", sizes("self_label", TINY, 2))
    kinds = {"gradients", "assignment", "drawn pixels", "class distribution", "loop"}
    assert counted["step"].keys() == kinds
    assert counted["step"] == wanted
    # A checkpoint gathers the shares of the bank.
    share = TINY.bank_size // 2 * (4 * TINY.feature_dim + 8 + 1)
    assert share < counted["last"]["loop"] < share + 10_000


def test_what_grows_with_the_number_of_ranks() -> None:
    at_two = Sizes(parameters=1000, classes=19, feature_dim=256, ranks=2)
    assert predict("self_label", replace(at_two, ranks=1)) == {}
    two, eight = (predict("self_label", replace(at_two, ranks=ranks)) for ranks in (2, 8))
    assert eight["drawn pixels"] == 4 * two["drawn pixels"]
    assert {kind for kind in two if eight[kind] != two[kind]} == {"drawn pixels"}
    # In parts the gradients are still sent once, but each part is assigned by itself.
    in_parts = predict("self_label", replace(at_two, parts=4))
    assert in_parts["gradients"] == two["gradients"]
    assert in_parts["assignment"] == 4 * two["assignment"]
