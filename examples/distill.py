"""Stages 2 and 3: the model of the stage before teaches a fresh student.

python examples/distill.py --config examples/configs/gta5_to_cityscapes.toml
"""

from functools import partial

import torch

from config import Config, parse
from cpsl import carry, cross_entropy, distillation
from cpsl.data import HardLabelStore
from cpsl.engine import Process, TrainingLoop, autocast, local_gradients
from domains import source_batches, target_batches, training_picture
from networks import build_model, build_optimization, resize, save_model, to_unit
from pseudo_labels import label_target
from stage import begin_run, run_stage


def distill(config: Config, process: Process, stage: str, previous: str) -> float:
    """Trains a student on the source, the teacher's confident labels and the teacher's probabilities.

    Args:
        config: Settings.
        process: This process.
        stage: "distill_1" or "distill_2".
        previous: Stage whose model teaches.

    Returns:
        Seconds of training.
    """
    settings, folder = config.distill, config.output / stage
    teacher = build_model(config, config.output / previous / "model.pt").to(process.device)
    teacher.requires_grad_(False).eval()
    label_target(teacher, folder / "labels", settings.confidence_threshold, config, process)

    if settings.student == "previous":
        student = build_model(config, config.output / previous / "model.pt")
    else:
        self_supervised = settings.student != "random"
        student = build_model(config, settings.student, output_norm=self_supervised)
    student = student.to(process.device).train()
    optimization = build_optimization(config, settings, student)
    loop = TrainingLoop(
        folder,
        stage,
        iterations=settings.iterations,
        seed=config.seed,
        process=process,
        state={"student": student, "optimization": optimization},
        checkpoint_every=config.checkpoint_every,
    )
    learn = process.parallel(student)
    sources = source_batches(config, stage, process, settings.batch_size, loop.start)
    hard_labels = HardLabelStore(folder / "labels")
    targets = target_batches(
        config, stage, process, settings.batch_size, loop.start, hard_labels.read
    )

    for iteration in loop:
        for part in range(config.accumulate):
            more = part + 1 < config.accumulate
            source, target = next(sources), next(targets)

            # 1. Cross-entropy on the source.
            with local_gradients(learn), autocast(process.device, config.precision):
                logits = resize(learn(to_unit(source.image)).logits, source.label.shape[1:])
                loss_source = cross_entropy(logits, source.label)
                optimization.backward(loss_source)

            # 2. The teacher sees the weak view; its output is carried into the strong one.
            with torch.no_grad(), autocast(process.device, config.precision):
                logits_weak = teacher(to_unit(target.weak)).logits
            logits_teacher, seen = carry(
                logits_weak,
                target.weak_view,
                target.strong_view,
                logits_weak.shape[2:],
                layout="corners",
            )
            in_crop, _ = carry(target.pseudo_labels, target.whole_view, target.weak_view)
            labels, _ = carry(in_crop, target.weak_view, target.strong_view)

            # 3. The student on the strong view: cross-entropy and distillation.
            with local_gradients(learn, when=more), autocast(process.device, config.precision):
                output = learn(to_unit(target.strong))
                loss_target = cross_entropy(resize(output.logits, labels.shape[1:]), labels)
                loss_distillation = distillation(output.logits, logits_teacher, seen)
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

    if process.is_main:
        save_model(folder / "model.pt", student, config)
    return loop.seconds


if __name__ == "__main__":
    config = parse(Config)
    with begin_run(config) as process:
        for stage, previous in (("distill_1", "self_label"), ("distill_2", "distill_1")):
            run_stage(stage, partial(distill, stage=stage, previous=previous), config, process)
