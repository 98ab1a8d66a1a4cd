"""The facts of a run: what it was computed from, with what, where and when."""

import tomllib
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from torch import Tensor

from cpsl.app.command_line import read_layers
from cpsl.app.config import PREVIOUS, STAGES, Config, WarmUp
from cpsl.app.datasets import domains, open_dataset
from cpsl.app.domain import Domain
from cpsl.app.evaluate import evenly_spaced
from cpsl.app.reporting.content import UNRECORDED, DataSet
from cpsl.app.reporting.sources import describe_contributions
from cpsl.app.run_record import read_sessions
from cpsl.app.settings import UsageError, flatten, to_toml
from cpsl.app.source_sampling import named_sources
from cpsl.app.stages import trained_stages
from cpsl.app.titles import title_of
from cpsl.app.words import listing, plural, sizes
from cpsl.data.reading import read_header
from cpsl.data.sample import files_of
from cpsl.training import load

MEASURED = 50
"""Most images of a data set, evenly spaced, whose sizes are read."""

UNNAMED = ("/", ".", "..", "image", "images", "img", "imgs", "rgb", "train", "val", "test")
"""Folders in a data set whose names do not tell which one it is."""

SELECTED = {
    "last": "its last weights",
    "best": "the best of its evaluations by target labels",
    "score": "the best of its evaluations by a score without target labels",
}
"""Values of `select_checkpoint`."""


def describe_data(config: Config) -> list[DataSet]:
    """Counts images and labels of each domain, and reads the sizes of some images."""
    named = domains(config)
    opened = {name: open_dataset(config, domain) for name, domain in named.items()}
    sources = {name: opened[name] for name in named_sources(config)}
    notes = describe_contributions(config, sources) if len(sources) > 1 else {}
    described = []
    for name, dataset in opened.items():
        domain, count = named[name], len(dataset)
        files = [files_of(dataset, index) for index in range(count)]
        measured = [files[i][0] for i in evenly_spaced(count, MEASURED)]
        used = name != "target" or not config.evaluation.given
        described.append(
            DataSet(
                name,
                count,
                sum(label is not None for _, label in files) if used else None,
                sizes([read_header(path)[0] for path in measured if path is not None]),
                f"{domain.images or domain.root}"
                + (f" ({domain.split})" if domain.dataset == "cityscapes" else ""),
                notes.get(name, ""),
                domain.streets > 0,
            )
        )
    return described


def describe_adaptation(config: Config) -> str:
    """Returns a title that tells what was adapted to what, as far as the names of the folders do."""
    used = [*config.sources, config.target]
    *sources, target = (_name(domain) for domain in used)
    generated = " (generated streets)" if all(domain.streets for domain in used) else ""
    return f"Adaptation from {listing(dict.fromkeys(sources))} to {target}{generated}"


def _name(domain: Domain) -> str:
    """Returns the name of a data set, or of the folder that holds it."""
    if domain.dataset != "folder" and not domain.streets:
        return {"gta5": "GTA5", "synthia": "SYNTHIA", "cityscapes": "Cityscapes"}[domain.dataset]
    folder = domain.images or domain.root or Path()
    parts = [part for part in folder.parts if part.lower() not in UNNAMED]
    return "/".join(parts[-2:] if parts and parts[-1] in ("source", "target") else parts[-1:]) or "images"


def describe_run(config: Config, chosen: str) -> dict[str, list[str]]:
    """Returns the facts of a run by what they are about, each as lines of text."""
    sessions = read_sessions(config.output)
    facts: dict[str, list[str]] = {}
    if sessions:
        first, last = sessions[0], sessions[-1]
        facts["Started"] = [_date(first.started)]
        if len(sessions) > 1:
            facts["Started"].append(
                f"continued {plural(len(sessions) - 1, 'time')}, last on {_date(last.started)}"
            )
        facts["Command"] = list(dict.fromkeys(session.command for session in sessions))
    else:
        facts["Started"] = facts["Command"] = [UNRECORDED]
    facts["Stages"] = [_stage(config, stage) for stage in config.stages]
    facts["Network"] = [_network(config, chosen)]
    facts["Initial weights"] = [_initial_weights(config)]
    facts["Checkpoints"] = [f"each stage ends with {SELECTED[config.select_checkpoint]}"]
    facts["Seed"] = [str(config.seed)]
    facts["Precision"] = [config.precision]
    if sessions:
        facts["Hardware"] = sessions[-1].hardware
        versions = sessions[-1].versions.items()
        facts["Versions"] = [", ".join(f"{name} {version}" for name, version in versions)]
        changed = [s for s in sessions[:-1] if s.versions != sessions[-1].versions]
        if changed:
            facts["Versions"].append(
                f"begun with {', '.join(f'{n} {v}' for n, v in changed[0].versions.items())}"
            )
    else:
        facts["Hardware"] = facts["Versions"] = [UNRECORDED]
    return facts


def describe_settings(config: Config) -> dict[str, tuple[str, bool]]:
    """Returns each setting by its key, and whether it is the default; not those of stages that do not run."""
    settings, defaults = (flatten(tomllib.loads(to_toml(c))) for c in (config, Config()))
    tables = {stage: "distill" if stage in PREVIOUS else stage for stage in STAGES}
    unused = set(tables.values()) - {tables[stage] for stage in config.stages}
    return {
        key: (_value(value), defaults.get(key) == value)
        for key, value in settings.items()
        if key.partition(".")[0] not in unused
    }


def iterations(config: Config) -> dict[str, int]:
    """Returns the steps of each stage that was trained in this run."""
    return {stage: config.settings_of(stage).iterations for stage in trained_stages(config)}


def _stage(config: Config, stage: str) -> str:
    if init := getattr(config.init_from, stage):
        return f"{title_of(stage)}: not trained, read from {init}"
    settings = config.settings_of(stage)
    start = getattr(settings, "start", getattr(settings, "student", ""))
    weights = {
        "source_only": "the source-only network",
        "previous": "the network of the stage before",
        "": "the warm-up network",
    }.get(start, _weights(config, start))
    adapts = not isinstance(settings, WarmUp) or settings.adversarial_weight > 0
    images = plural(settings.batch_size, "image") + (" of each domain" if adapts else "")
    return f"{title_of(stage)}: {plural(settings.iterations, 'step')} of {images}, from {weights}"


def _initial_weights(config: Config) -> str:
    """Returns what the first network of a run began with; if it is a file of another run, what that says."""
    stage = config.stages[0]
    path: Path | None = getattr(config.init_from, stage)
    if path is None:
        return _weights(config, getattr(config.settings_of(stage), "start", ""))
    other = path.parent.parent / "config.toml"
    if path.parent.name == stage and other.is_file():
        with suppress(UsageError):  # of another version
            begun = read_layers([str(other)])
            if getattr(begun.init_from, stage) != path:  # not the file itself
                return _initial_weights(begun)
    return f"weights of {path}"


def _weights(config: Config, start: str) -> str:
    """Returns a setting of initial weights in words."""
    published = (
        f"weights of {config.model.weights}" if config.model.weights else f"{_published(config)} weights"
    )
    return {"pretrained": published, "random": "random weights"}.get(start, f"weights of {start}")


def _network(config: Config, chosen: str) -> str:
    path = config.output / chosen / "model.pt"
    if not path.exists():  # the file at the top is a copy
        path = config.output / "model.pt"
    state: dict[str, Tensor] = load(path).get("model", {})
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(value.numel() for name, value in state.items() if not name.endswith(buffers))
    arguments = ", ".join(f"{key} = {value}" for key, value in config.model.arguments.items())
    parts = [_called(config.model.network), f"{count / 1e6:.1f} million weights" if count else "", arguments]
    return ", ".join(part for part in parts if part)


def _called(network: str) -> str:
    """Returns the name of a network as papers have it, if the settings have a shorter one.

    Example:
        >>> _called("lite0"), _called("deeplabv2:resnet101"), _called("smp:Unet/resnet34")
        ('EfficientNet-Lite0', 'DeepLabV2 with resnet101', 'smp:Unet/resnet34')
    """
    return "EfficientNet-Lite0" if network == "lite0" else network.replace("deeplabv2:", "DeepLabV2 with ")


def _published(config: Config) -> str:
    """Returns what the published weights were trained on, where it is known."""
    known = config.model.network == "lite0" or config.model.network.startswith("deeplabv2:")
    return "ImageNet" if known else "pretrained"


def _date(started: str) -> str:
    time = datetime.fromisoformat(started)
    offset = time.strftime("%z")
    zone = f"UTC{offset[:3]}:{offset[3:5]}" if offset.strip("+-0") else "UTC"
    return f"{time.day} {time:%B %Y, %H:%M} {zone}"


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value)) if value else "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)
