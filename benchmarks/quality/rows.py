"""The rows of the benchmark: each is a few settings that differ from those of a shift, our recipe."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from cpsl.app.config import Config
from cpsl.app.domain import Domain

Settings = Mapping[str, Any]
"""Values by dotted name, such as {"online.mixing": "cut"}."""

SOURCE_SIDE = ("source", "views", "source_only", "model")
"""Tables of the settings that change the source-only network."""

EVEN: Settings = {"views.rare_class_temperature": 0.0}
MEAN_TEACHER: Settings = {
    "online.mixing": "none",
    "online.clustering": False,
    "online.balanced": False,
    "online.limited": False,
    "online.masked_weight": 0.0,
    "online.target_statistics": 0.0,
}
DACS: Settings = {**MEAN_TEACHER, "online.mixing": "class"}
DAFORMER: Settings = {**DACS, "views.rare_class_temperature": 0.01}
MASKED: Settings = {"online.masked_weight": 1.0}
PAPER: Settings = {
    "method": "paper",
    "views.color_transfer": 1.0,
    "views.source_jitter": 0.0,
    "views.rare_class_temperature": 0.0,
}

BASELINES: dict[str, tuple[str, Settings]] = {
    "mean_teacher": ("mean teacher", {**EVEN, **MEAN_TEACHER}),
    "dacs": ("DACS-style: mean teacher, ClassMix", {**EVEN, **DACS}),
    "dacs_masked": ("DACS-style with masked images", {**EVEN, **DACS, **MASKED}),
    "daformer": ("DAFormer-style: DACS, rare-class sampling; no feature distance", DAFORMER),
    "dacs_our_source": ("DACS-style, starting from our source-only network", DACS),
    "paper": ("the paper's four stages", PAPER),
}

VARIATIONS: dict[str, tuple[Any, ...]] = {
    "views.rare_class_temperature": (0.0, 0.01),
    "views.color_transfer": (0.0, 0.5, 1.0),
    "views.source_jitter": (0.0, 0.5),
    "online.target_statistics": (0.0, 0.25, 1.0),
    "online.freeze_batch_norm": (False, True),
    "online.masked_weight": (0.0, 1.0),
    "online.mixing": ("none", "cut", "class"),
    "online.clustering": (False, True),
    "online.balanced": (False, True),
    "online.limited": (False, True),
}
"""Values of one setting each; the recipe with one of them changed is a row: a part is removed or added."""


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Attributes:
        name: Name of its folder.
        title: What it is.
        settings: What differs from the settings of the shift.
        adapts: Whether the network is adapted after it was trained on the source.
    """

    name: str
    title: str
    settings: Settings
    adapts: bool = True

    @property
    def source(self) -> "Row":
        """The row that trains the source-only network from which this one starts; rows share it.

        Example:
            >>> Row("paper", "the paper", PAPER).source.name
            'source_color_transfer_1_source_jitter_0_rare_class_temperature_0'
            >>> Row("still", "no clustering", {"online.clustering": False}).source.name
            'source_only'
        """
        if not self.adapts:
            return self
        settings = {key: v for key, v in self.settings.items() if key.partition(".")[0] in SOURCE_SIDE}
        if not settings:
            return SOURCE_ONLY
        title = f"source only, {_described(settings)}"
        return Row(f"source_{_slug(settings)}", title, settings, adapts=False)


SOURCE_ONLY = Row("source_only", "source only", {}, adapts=False)
OURS = Row("ours", "**our recipe**", {})


def _slug(settings: Settings) -> str:
    return "_".join(f"{key.rpartition('.')[2]}_{_short(value)}" for key, value in settings.items())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _described(settings: Settings) -> str:
    return ", ".join(f"`{key.rpartition('.')[2]} = {_short(value)}`" for key, value in settings.items())


def rows(shift: Config) -> list[Row]:
    """Returns the rows of a shift: our recipe, simple alternatives, the recipe with one part changed, bounds.

    A value that the settings of the shift have anyway is no difference. Of equal rows only the first remains,
    with the titles of all: the recipe without clustering may be a DACS-style row, for example.
    """
    distinct: dict[tuple[bool, str], Row] = {}
    for row in _rows(shift):
        settings = {key: value for key, value in row.settings.items() if attrgetter(key)(shift) != value}
        if row.settings and not settings and row.name.startswith("ours_"):
            continue  # the recipe itself
        key = row.adapts, json.dumps(settings, sort_keys=True)
        first = distinct.setdefault(key, replace(row, settings=settings))
        if first.name != row.name:
            distinct[key] = replace(first, title=f"{first.title}; {row.title}")
    return [*distinct.values()]


def _rows(shift: Config) -> Iterator[Row]:
    longer: Settings = {"source_only.iterations": shift.source_only.iterations + shift.online.iterations}
    yield SOURCE_ONLY
    yield Row("source_only_longer", "source only, as many steps as with adaptation", longer, adapts=False)
    yield OURS
    for name, (title, settings) in BASELINES.items():
        yield Row(name, title, settings)
    for key, values in VARIATIONS.items():
        for value in values:
            yield Row(f"ours_{_slug({key: value})}", f"our recipe, {_described({key: value})}", {key: value})
    if labeled := _labeled(shift.target):
        settings = {**labeled, "views.color_transfer": 0.0, **longer}
        yield Row("oracle", "oracle: trained on the target's labels", settings, adapts=False)


def _labeled(target: Domain) -> Settings:
    """Returns the settings that make the target the source, with labels; none if it has no labels."""
    if target.dataset != "folder":
        return {f"source.{name}": _plain(getattr(target, name)) for name in ("dataset", "root", "split")}
    labels = target.images and target.images.parent / "labels"
    if not (labels and labels.is_dir()):
        return {}
    return {"source.images": str(target.images), "source.labels": str(labels)}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
