"""Gathers from the folder of a run what its report shows."""

from dataclasses import replace

import torch
from torch import Tensor

from config import Config, to_toml
from cpsl import (
    ClassBalancedPrototypeClustering,
    PseudoLabelRectifier,
    class_counts,
    prototype_similarity,
)
from cpsl.data import HardLabelStore, Sample, whole_image
from cpsl.engine import Process, autocast, load, read_scalars
from cpsl.randomness import derive_seed
from domains import evaluation_dataset, label_space, source_dataset
from networks import build_clustering, build_model, resize, to_unit
from pseudo_labels import read_start
from report import Clusters, Picture, Report
from stage import STAGES, read_metrics

PICTURES = 6
SOURCE_LABELS = 100  # source labels that are counted: enough for a bar, quick for a large data set


@torch.inference_mode()
def collect(config: Config, process: Process) -> Report:
    """Reads metrics, curves and predictions, and rectifies the warm-up's labels for a few images."""
    metrics = read_metrics(config)
    classes = label_space(config)
    return Report(
        title=config.output.name,
        classes=classes.names,
        palette=classes.palette,
        metrics=metrics,
        class_distributions=_class_distributions(config, process),
        curves={
            stage: _curves(config, stage) for stage in STAGES if read_scalars(config.output / stage)
        },
        pictures=_pictures(config, process),
        config=to_toml(config),
        selected=config.hand_on == "best",
    )


def load_clustering(config: Config, process: Process) -> ClassBalancedPrototypeClustering:
    """Loads the prototypes, bank and class distribution that self-labeling ended with."""
    path = config.output / "self_label" / "clustering.pt"
    state = load(path, process.device)
    try:
        # The bank is the share of rank 0, whatever the number of ranks was.
        settings = replace(config.self_label, bank_size=len(state["bank.features"]))
        clustering = build_clustering(settings, *state["prototypes"].shape)
        clustering.load_state_dict(state)
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not what self-labeling writes: {error}") from error
    return clustering.to(process.device)


def _class_distributions(config: Config, process: Process) -> dict[str, list[float]]:
    dataset = source_dataset(config)
    counts = torch.zeros(len(dataset.label_space), dtype=torch.int64)
    step = max(len(dataset) // SOURCE_LABELS, 1)
    for index in range(0, len(dataset), step):
        label = dataset[index].label
        if label is not None:
            counts += class_counts(label, len(counts))
    distributions = {"labels of the source": (counts / counts.sum().clamp_min(1)).tolist()}
    if not _self_labeled(config):
        return distributions
    clustering = load_clustering(config, process)
    bank = clustering.bank.features[clustering.bank.valid]
    scores = prototype_similarity(bank, clustering.prototypes)
    aligned = clustering.aligner(
        scores, epsilon=clustering.epsilon, iterations=clustering.sinkhorn_iterations
    )
    start = read_start(config, clustering.prototypes.shape)
    return {
        **distributions,
        "predictions on the target, warm-up": start.class_distribution.tolist(),
        "class distribution after self-labeling": clustering.aligner.distribution.tolist(),
        "assignments, aligned": aligned.mean(dim=0).tolist(),
        "nearest prototypes, not aligned": (
            class_counts(scores.argmax(dim=1), len(counts)) / max(len(scores), 1)
        ).tolist(),
    }


def _curves(config: Config, stage: str) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in read_scalars(config.output / stage):
        for name, value in row.items():
            if name != "iteration":
                curves.setdefault(name, []).append((int(row["iteration"]), value))
    return curves


def _pictures(config: Config, process: Process) -> list[Picture]:
    dataset = evaluation_dataset(config)
    step = max(len(dataset) // PICTURES, 1)
    samples = [dataset[index] for index in list(range(0, len(dataset), step))[:PICTURES]]
    if not _self_labeled(config):
        return [
            Picture(s.name, s.image, s.label, _predictions(config, s.name), {}, None, None)
            for s in samples
        ]
    warmup = build_model(config, config.output / "warmup" / "model.pt").to(process.device).eval()
    teacher = (
        build_model(config, config.output / "self_label" / "teacher.pt").to(process.device).eval()
    )
    clustering = load_clustering(config, process)
    rectifier = PseudoLabelRectifier(
        config.self_label.temperature, config.self_label.confidence_threshold
    )

    def rectify(sample: Sample) -> Picture:
        image = to_unit(whole_image(sample.image, config.views.full_size)[None].to(process.device))
        with autocast(process.device, config.precision):
            soft = warmup(image).logits.float().softmax(dim=1)
            logits, features = teacher(image)
        rectified = rectifier(soft, features, clustering.ema_prototypes)
        torch.manual_seed(derive_seed(config.seed, f"report {sample.name}"))  # of the drawn pixels
        clusters = clustering(features, rectified.labels, logits=logits)
        size = sample.image.shape[1:]
        probabilities = resize(rectified.probabilities, size)[0].cpu()
        return Picture(
            name=sample.name,
            image=sample.image,
            ground_truth=sample.label,
            predictions=_predictions(config, sample.name),
            pseudo_labels={
                "before rectification": resize(soft, size)[0].argmax(dim=0).cpu(),
                "after rectification": probabilities.argmax(dim=0),
            },
            confidence=probabilities.amax(dim=0),
            clusters=Clusters(
                prototype_similarity(features, clustering.prototypes)[0].cpu(),
                clusters.indices.cpu(),
                clusters.assignments.cpu(),
            ),
        )

    return [rectify(sample) for sample in samples]


def _self_labeled(config: Config) -> bool:
    """Returns whether self-labeling ran here, rather than that its model came from a file."""
    return (config.output / "self_label" / "clustering.pt").exists()


def _predictions(config: Config, name: str) -> dict[str, Tensor]:
    read = {}
    for stage in read_metrics(config):
        try:
            read[stage] = HardLabelStore(config.output / stage / "predictions").read(name)
        except (OSError, ValueError) as error:
            metrics = config.output / stage / "metrics.json"
            raise ValueError(f"{error}. Without {metrics} the stage is evaluated again.") from error
    return read
