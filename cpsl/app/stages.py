"""The stages of a run: each builds a method from the settings and trains it."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F

from cpsl.app.class_shares import source_distribution
from cpsl.app.clusterings import online_clustering, self_label_clustering
from cpsl.app.config import PREVIOUS, Authors, Config, Online, SelfLabel, WarmUp
from cpsl.app.curves import TITLES
from cpsl.app.datasets import label_space, micro_batches, source_batches, target_batches
from cpsl.app.networks import build_model, build_optimizer, compile_networks, save_model
from cpsl.app.pseudo_labels import label_target, read_start
from cpsl.app.selection import CheckpointSelection
from cpsl.app.target_statistics import mix_target_statistics
from cpsl.authors import AuthorsSelfLabeling, probability_distillation
from cpsl.data import HardLabelStore, SoftLabelStore, StrongAugmentation, TargetBatch
from cpsl.limits import ShareLimits
from cpsl.losses import distillation
from cpsl.methods import AdversarialWarmup, Distillation, OnlineSelfLabeling, SelfLabeling
from cpsl.models import Discriminator, ExponentialMovingAverage, SegmentationNetwork, freeze_batch_norm
from cpsl.rectification import PseudoLabelRectifier
from cpsl.thresholds import DiceThresholds
from cpsl.training import Cost, Optimization, Position, Process, TrainingLoop, autocast, save
from cpsl.training.loop import Stateful
from cpsl.visualize import overlay, panel

Method = AdversarialWarmup | SelfLabeling | Distillation | OnlineSelfLabeling

MIXED_VIEWS = StrongAugmentation(jitter=0.25, operations=0, cutout=0)
"""Strong views of the online method: mixed and masked images take the place of RandAugment and the cutout."""


def trained_stages(config: Config) -> list[str]:
    """Returns the stages of a run whose network is not read from a file."""
    return [stage for stage in config.stages if not getattr(config.init_from, stage)]


def position_of(stage: str, config: Config) -> Position:
    """Returns the number of a stage in its run, the number of stages, and the iterations that follow.

    Those of a stage whose step costs twice as much count twice.
    """
    index = config.stages.index(stage)
    later = [other for other in trained_stages(config) if other in config.stages[index + 1 :]]
    costs = {other: _passes(other, config) * config.settings_of(other).batch_size for other in config.stages}
    iterations = sum(config.settings_of(other).iterations * costs[other] for other in later)
    return Position(index + 1, len(config.stages), round(iterations / costs[stage]))


def _passes(stage: str, config: Config) -> int:
    """Returns what a step of a method costs, in forward passes of the network; a backward pass is two."""
    forward, trained = 1, 3
    match config.settings_of(stage):
        case WarmUp(adversarial_weight=weight):
            return trained + (trained if weight > 0 else 0)
        case SelfLabel():  # the source, mixed images, clustering, and the teacher
            return 3 * trained + forward
        case Online(masked_weight=weight):  # the source, mixed and masked images, and the teacher
            return 2 * trained + forward + (trained if weight > 0 else 0)
        case _:  # distillation: the source, the target, and the teacher
            return 2 * trained + forward


def warm_up(config: Config, process: Process, stage: str = "warmup") -> Cost:
    """Trains the warm-up network or, with `stage="source_only"`, the network without adaptation."""
    settings = config.source_only if stage == "source_only" else config.warmup
    source_only = config.output / "source_only" / "model.pt"
    start = source_only if settings.start == "source_only" else settings.start
    network = build_model(config, start).to(process.device).train()
    if settings.freeze_batch_norm:
        freeze_batch_norm(network)
    optimizers = [build_optimizer(config, settings.optimizer, network)]
    state: dict[str, Stateful] = {"network": network}
    discriminator = None
    if settings.adversarial_weight > 0:
        discriminator = Discriminator(network.num_classes, settings.discriminator_width).to(process.device)
        state["discriminator"] = discriminator
        rate, fused = settings.discriminator_learning_rate, process.device.type == "cuda"
        parameters = discriminator.parameters()
        optimizers.append(torch.optim.Adam(parameters, rate, betas=(0.9, 0.99), fused=fused))
    compile_networks(config, network, discriminator)
    method = AdversarialWarmup(
        process.parallel(network),
        None if discriminator is None else process.parallel(discriminator),
        adversarial_weight=settings.adversarial_weight,
    )
    return train(stage, method, network, optimizers, config, process, state)


def self_label(config: Config, process: Process, stage: str = "self_label") -> Cost:
    """Trains the student of self-labeling; writes the teacher and the clustering as well."""
    settings, authors = config.self_label, config.authors
    student = build_model(config, config.output / "warmup" / "model.pt").to(process.device).train()
    teacher = ExponentialMovingAverage(student, "training" if authors.training_mode_teacher else "evaluation")
    clustering = self_label_clustering(config, student.num_classes, student.feature_dim)
    clustering.to(process.device)
    clustering.initialize(*read_start(config, clustering.prototypes.shape))
    rate = settings.optimizer.learning_rate * settings.prototype_multiplier
    prototypes = {"params": [clustering.prototypes], "lr": rate}
    optimizer = build_optimizer(config, settings.optimizer, student, prototypes)
    compile_networks(config, student, teacher.module)
    build: Callable[..., SelfLabeling] = SelfLabeling
    if authors != Authors():
        build = partial(
            AuthorsSelfLabeling,
            rectify_features=authors.rectify_features,
            crop_bank_labels=authors.crop_bank_labels,
            contrast_weight=authors.contrast_weight,
        )
    method = build(
        process.parallel(student),
        teacher,
        process.parallel(clustering),
        PseudoLabelRectifier(settings.temperature, settings.confidence_threshold),
        cutmix_probability=settings.cutmix_probability,
        ce_weight=settings.ce_weight,
        rce_weight=settings.rce_weight,
        self_label_weight=settings.self_label_weight,
        consistency_weight=settings.consistency_weight,
        momentum=settings.teacher_momentum,
    )
    soft_labels = SoftLabelStore(config.output / "pseudo_labels" / "soft", student.num_classes)
    state: dict[str, Stateful] = {"student": student, "teacher": teacher}
    of_rank = {"clustering": clustering}
    cost = train(stage, method, student, [optimizer], config, process, state, of_rank, soft_labels.read)
    if process.is_main:
        save_model(config.output / stage / "teacher.pt", teacher.module, config)
        save(config.output / stage / "clustering.pt", clustering.state_dict())
    return cost


def distill(config: Config, process: Process, stage: str) -> Cost:
    """Trains the student of `stage`, "distill_1" or "distill_2", with the network before as its teacher."""
    settings, authors = config.distill, config.authors
    previous = config.output / PREVIOUS[stage] / "model.pt"
    teacher = build_model(config, previous).to(process.device)
    teacher.requires_grad_(False).eval()
    folder, ignored = config.output / stage / "labels", authors.ignore_index
    labels = HardLabelStore(folder, ignore_index=ignored, num_classes=teacher.num_classes)
    label_target(teacher, labels, settings.confidence_threshold, config, process)

    if settings.student == "previous":
        student = build_model(config, previous)
    else:
        student = build_model(config, settings.student, settings.output_norm)
    student = student.to(process.device).train()
    optimizer = build_optimizer(config, settings.optimizer, student)
    compile_networks(config, student, teacher)
    method = Distillation(
        process.parallel(student),
        teacher,
        distillation_weight=settings.distillation_weight,
        loss=probability_distillation if authors.probability_distillation else distillation,
    )
    state = {"student": student}
    return train(stage, method, student, [optimizer], config, process, state, read_labels=labels.read)


def online(config: Config, process: Process, stage: str = "online") -> Cost:
    """Trains the student of the online method, whose moving average is the result; writes the clustering."""
    settings = config.online
    source_only = config.output / "source_only" / "model.pt"
    start = source_only if settings.start == "source_only" else settings.start
    student = build_model(config, start).to(process.device).train()
    mix_target_statistics(student, MIXED_VIEWS, config, process)
    if settings.freeze_batch_norm:
        freeze_batch_norm(student)
    teacher = ExponentialMovingAverage(student)
    optimizer = build_optimizer(config, settings.optimizer, student)
    clustering = None
    if settings.clustering:
        clustering = online_clustering(config, student).to(process.device)
    thresholds = DiceThresholds(student.num_classes).to(process.device) if settings.balanced else None
    limits = None
    if settings.limited and (source := source_distribution(config)) is not None:
        limits = ShareLimits(source).to(process.device)
    compile_networks(config, student, teacher.module)
    method = OnlineSelfLabeling(
        process.parallel(student),
        teacher,
        clustering,
        thresholds,
        limits,
        mixing=settings.mixing,
        confidence_threshold=settings.confidence_threshold,
        contrast_weight=settings.contrast_weight,
        masked_weight=settings.masked_weight,
        masked_share=settings.masked_share,
        masked_patch=settings.masked_patch,
        momentum=settings.teacher_momentum,
    )
    state: dict[str, Stateful] = {"student": student, "teacher": teacher}
    of_rank: dict[str, Stateful] = {}
    if clustering is not None and method.initial is not None:
        state["initial"], of_rank["clustering"] = method.initial, clustering
    if thresholds is not None:
        state["thresholds"] = thresholds
    if limits is not None:
        state["limits"] = limits
    cost = train(stage, method, teacher.module, [optimizer], config, process, state, of_rank)
    if process.is_main and clustering is not None:
        save(config.output / stage / "clustering.pt", clustering.state_dict())
    return cost


TRAINERS: dict[str, Callable[..., Cost]] = {
    "source_only": warm_up,
    "warmup": warm_up,
    "self_label": self_label,
    "distill_1": distill,
    "distill_2": distill,
    "online": online,
}
"""The function that trains each stage, called with settings, process and `stage`."""


def train(
    stage: str,
    method: Method,
    network: SegmentationNetwork,
    optimizers: list[torch.optim.Optimizer],
    config: Config,
    process: Process,
    state: Mapping[str, Stateful],
    state_of_rank: Mapping[str, Stateful] | None = None,
    read_labels: Callable[[str], torch.Tensor] | None = None,
) -> Cost:
    """Trains a method for the iterations of its stage, and writes its network, without parallel wrapper.

    A checkpoint holds `state`, which is equal on every rank, and `state_of_rank`.
    """
    settings = config.settings_of(stage)
    parts, _ = micro_batches(config, settings.batch_size, process)
    optimization = Optimization(
        optimizers,
        settings.iterations,
        warmup=settings.warmup_iterations if isinstance(settings, Online) else 0,
        precision=config.precision,
        accumulation=parts,
        module=method,
    )
    selection = CheckpointSelection(network, stage, config, process)
    loop = TrainingLoop(
        config.output / stage,
        stage,
        iterations=settings.iterations,
        seed=config.seed,
        process=process,
        state={**state, "optimization": optimization, "selection": selection},
        state_of_rank=state_of_rank,
        checkpoint_every=config.checkpoint_every,
        log_every=min(20, max(settings.iterations // 10, 1)),
        trace_non_finite=config.trace_non_finite,
        position=position_of(stage, config),
        titles=TITLES,
    )
    sources = source_batches(config, stage, process, settings.batch_size, loop.start)
    targets: Iterator[Any] = repeat(None)  # the source alone
    if not isinstance(method, AdversarialWarmup) or method.discriminator is not None:
        strong = None
        if isinstance(method, OnlineSelfLabeling):
            strong = MIXED_VIEWS
        targets = target_batches(config, stage, process, settings.batch_size, loop.start, read_labels, strong)

    selection.start(loop)
    for iteration in loop:
        images: list[str] = []
        for part in range(parts):
            source, target = next(sources), next(targets)
            losses = method.losses(source, target, last_micro_batch=part + 1 == parts)
            with autocast(process.device, config.precision):
                total = torch.zeros((), device=process.device)
                for loss in losses:
                    optimization.backward(loss)
                    total += loss.detach()
            loop.record({"loss": total, "learning_rate": optimization.learning_rate, **method.metrics})
            images += source.names + ([] if target is None else target.names)
            if part == 0 and loop.shows(iteration):
                _log_picture(loop, iteration, method, target, config)
        applied = optimization.step()
        method.update(applied)
        loop.step(applied, images, optimization.overflowed)
        selection.update(loop, iteration)

    selection.save()
    return loop.cost


def _log_picture(
    loop: TrainingLoop, iteration: int, method: Method, target: TargetBatch | None, config: Config
) -> None:
    """Logs the first image of a batch, beside its labels."""
    if method.supervision is None:
        return
    name, (images, labels) = "source image, its labels", method.supervision
    enlarged = F.interpolate(labels[:1, None].float(), images.shape[2:])[0, 0].long()
    pictures = [images[0], overlay(images[0], enlarged, label_space(config).palette, alpha=0.7)]
    if isinstance(method, SelfLabeling) and target is not None:
        name = "target image, its pseudo labels, its strong view"
        pictures.append(target.strong[0])
    elif isinstance(method, Distillation):
        name = "strong view of a target image, its pseudo labels"
    elif isinstance(method, OnlineSelfLabeling):
        name = "target image with parts of a source image, its labels"
    loop.picture(iteration, name, panel(pictures, columns=len(pictures)).cpu())
