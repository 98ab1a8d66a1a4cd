"""Stages 2 and 3: the model of the stage before teaches a fresh student.

python examples/distill.py --config examples/configs/gta5_to_cityscapes.toml --stage distill_1
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import tyro

from config import Config, parse
from cpsl import carry, cross_entropy, distillation
from cpsl.data import HardLabelStore
from cpsl.engine import Cost, Process, TrainingLoop, autocast, local_gradients
from domains import source_batches, target_batches, training_picture
from hand_on import HandOn
from networks import build_model, build_optimization, compile_networks, resize, to_unit
from pseudo_labels import label_target
from stage import begin_run, run_stage


def distill(config: Config, process: Process, stage: str, previous: str) -> Cost:
    """Trains a student on the source, the teacher's confident labels and the teacher's probabilities.

    Args:
        config: Settings.
        process: This process.
        stage: "distill_1" or "distill_2".
        previous: Stage whose model teaches.

    Returns:
        What it took.
    """
    settings, folder = config.distill, config.output / stage
    teacher = build_model(config, config.output / previous / "model.pt").to(process.device)
    teacher.requires_grad_(False).eval()
    hard_labels = HardLabelStore(
        folder / "labels", void=settings.void_index, num_classes=teacher.num_classes
    )
    label_target(teacher, hard_labels, settings.confidence_threshold, config, process)

    if settings.student == "previous":
        student = build_model(config, config.output / previous / "model.pt")
    else:
        student = build_model(config, settings.student, settings.output_norm)
    student = student.to(process.device).train()
    optimization = build_optimization(config, settings, student)
    hand_on = HandOn(student, stage, config, process)
    loop = TrainingLoop(
        folder,
        stage,
        iterations=settings.iterations,
        seed=config.seed,
        process=process,
        state={"student": student, "optimization": optimization, "hand_on": hand_on},
        checkpoint_every=config.checkpoint_every,
    )
    compile_networks(config, student, teacher)
    learn = process.parallel(student)
    sources = loop.batches(source_batches(config, stage, process, settings.batch_size, loop.start))
    targets = loop.batches(
        target_batches(config, stage, process, settings.batch_size, loop.start, hard_labels.read)
    )

    quarter = (config.views.crop[0] // 4, config.views.crop[1] // 4)

    for iteration in loop:
        for part in range(config.accumulate):
            more = part + 1 < config.accumulate
            source, target = next(sources), next(targets)

            # 1. Cross-entropy on the source.
            with local_gradients(learn), autocast(process.device, config.precision):
                logits = resize(learn(to_unit(source.image)).logits, source.label.shape[1:])
                loss_source = cross_entropy(logits, source.label)
                optimization.backward(loss_source)

            # 2. The labels, carried into the strong view: it shows what the weak view shows, or grey.
            in_crop, _ = carry(target.pseudo_labels, target.whole_view, target.weak_view)
            labels, _ = carry(
                in_crop,
                target.weak_view,
                target.strong_view,
                quarter,
                layout="pixels",
                output_layout="corners",
            )

            # 3. The student on the strong view: cross-entropy, and KL from the teacher on the same view.
            strong = to_unit(target.strong)
            with torch.no_grad(), autocast(process.device, config.precision):
                logits_teacher = teacher(strong).logits
            with local_gradients(learn, when=more), autocast(process.device, config.precision):
                logits = learn(strong).logits
                loss_target = cross_entropy(resize(logits, quarter), labels)
                loss_distillation = distillation(
                    logits, logits_teacher, student_term=settings.student_term
                )
                optimization.backward(
                    loss_target + settings.distillation_weight * loss_distillation
                )
            loop.record(
                loss_source=loss_source,
                loss_target=loss_target,
                loss_distillation=loss_distillation,
            )
            if part == 0 and loop.shows(iteration):
                picture = training_picture(config, target.strong, labels)
                loop.picture(iteration, "strong view with pseudo labels", picture)
        optimization.step()
        hand_on.look(loop, iteration)

    hand_on.save()
    return loop.cost


@dataclass(frozen=True)
class Arguments:
    """Distils the model of the stage before into a fresh student."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    stage: Literal["distill_1", "distill_2"] = "distill_1"
    """The first or the second distillation."""


PREVIOUS = {"distill_1": "self_label", "distill_2": "distill_1"}
"""The stage whose model teaches."""


if __name__ == "__main__":
    arguments = parse(Arguments)
    stage, config = arguments.stage, arguments.config
    with begin_run(config) as process:
        train = partial(distill, stage=stage, previous=PREVIOUS[stage])
        run_stage(stage, train, config, process)
