"""What `cpsl check` must say of data that are allowed, or wrong in many places at once."""

from functools import partial

import numpy as np

from case import LABEL, Act, Case, remove, settings, stored
from project import run

check = partial(Case, "check")

VALUES = range(3, 33)
MANY = [stored(LABEL, np.resize(np.array(VALUES), (32, 64))), stored("source/labels/b.png", 40)]
TWO = settings('["road", "car", "sky"]', '["road", "car"]')


def labels(domain: str, *values: int) -> list[Act]:
    """Gives both labels of a domain these values in equal parts."""
    picture = np.resize(np.array(values), (32, 64))
    return [stored(f"{domain}/labels/{name}.png", picture) for name in ("a", "b")]


def says(*texts: str) -> Act:
    """Runs the check, which must succeed and print the texts, however their lines are broken."""

    def act() -> None:
        printed = " ".join(run("check").split())
        missing = [text for text in texts if text not in printed]
        assert not missing, f"{missing} not in {printed}"

    return act


MASKS = [TWO, *labels("source", 0, 255), *labels("evaluation", 0, 255)]
ABSENT = [*labels("source", 0, 1), *labels("evaluation", 0, 2, 1, 2)]

CHECK = [
    check("thirty unknown ids in one label", MANY, tuple(f" {value} (" for value in VALUES), "check"),
    check("unknown ids of several labels", MANY, ("2 of 2 labels", " 40 (", '40 = "?"'), "check"),
    check("masks of 0 and 255", MASKS, ("hold only 0 and 255", '255 = "car" }'), "check"),
    check("class that no source shows", ABSENT, act=says("sky (50.0 % of the evaluation)", "1 warning")),
    check("single class", labels("source", 1), act=says("have the class car", "No source shows road (")),
    check("mostly ignored", labels("source", 0, 1, 2, *[255] * 9), act=says("75.0 % of the label pixels")),
    check("nothing to warn of", act=says("(ignored of all) 0.000", "check/source.png", "no problems")),
    check("target without its first image", remove("target/images/a.png"), act=says("target: 1 images")),
]
