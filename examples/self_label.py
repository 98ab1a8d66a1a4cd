"""Stage 1: class-balanced pixel-level self-labeling, the method itself.

    python examples/self_label.py --config examples/configs/gta5_to_cityscapes.toml

Starts from the warm-up's model, the soft labels it gave the target, its prototypes and class distribution.
"""

import torch

from config import Config
from cpsl import (
    PseudoLabelRectifier,
    carry,
    carry_enlarged,
    cross_entropy,
    cutmix,
    labels_of_crop,
    prototype_consistency,
    prototype_similarity,
    symmetric_cross_entropy,
)
from cpsl.data import SoftLabelStore
from cpsl.engine import Cost, Process, TrainingLoop, autocast, local_gradients, save
from cpsl.models import ExponentialMovingAverage
from domains import source_batches, target_batches, training_picture
from hand_on import HandOn
from networks import (
    build_clustering,
    build_model,
    build_optimization,
    compile_networks,
    resize,
    save_model,
    to_unit,
)
from pseudo_labels import read_start
from stage import main


def self_label(config: Config, process: Process) -> Cost:
    """Trains the student with rectified pseudo labels, clustering and consistency."""
    stage, settings = "self_label", config.self_label

    student = build_model(config, config.output / "warmup" / "model.pt").to(process.device).train()
    teacher = ExponentialMovingAverage(student, settings.teacher_mode)
    clustering = build_clustering(settings, student.num_classes, student.feature_dim)
    clustering.to(process.device)
    start = read_start(config, clustering.prototypes.shape)
    clustering.initialize(start.prototypes, start.class_distribution)
    rectifier = PseudoLabelRectifier(settings.temperature, settings.confidence_threshold)

    rate = settings.learning_rate * settings.prototype_multiplier
    prototypes = {"params": [clustering.prototypes], "lr": rate}
    optimization = build_optimization(config, settings, student, prototypes)
    hand_on = HandOn(student, stage, config, process)
    loop = TrainingLoop(
        config.output / stage,
        stage,
        iterations=settings.iterations,
        seed=config.seed,
        process=process,
        state={
            "student": student,
            "teacher": teacher,
            "optimization": optimization,
            "hand_on": hand_on,
        },
        state_of_rank={"clustering": clustering},
        checkpoint_every=config.checkpoint_every,
    )
    compile_networks(config, student, teacher.module)
    learn, cluster = process.parallel(student), process.parallel(clustering)
    sources = loop.batches(source_batches(config, stage, process, settings.batch_size, loop.start))
    soft_labels = SoftLabelStore(config.output / "pseudo_labels" / "soft", student.num_classes)
    targets = loop.batches(
        target_batches(config, stage, process, settings.batch_size, loop.start, soft_labels.read)
    )
    quarter = (config.views.crop[0] // 4, config.views.crop[1] // 4)
    whole_quarter = (config.views.full_size[0] // 4, config.views.full_size[1] // 4)

    for iteration in loop:
        clustered = []
        for part in range(config.accumulate):
            more = part + 1 < config.accumulate
            source, target = next(sources), next(targets)

            # 1. Cross-entropy on the source.
            with local_gradients(learn), autocast(process.device, config.precision):
                logits = resize(learn(to_unit(source.image)).logits, source.label.shape[1:])
                loss_source = cross_entropy(logits, source.label)
                optimization.backward(loss_source)

            with torch.no_grad(), autocast(process.device, config.precision):
                # 2. The teacher sees the whole target image.
                whole = teacher.module(to_unit(target.whole))
                similarity = prototype_similarity(whole.features, clustering.ema_prototypes)
                soft = resize(target.pseudo_labels, similarity.shape[2:])

                # 3. Rectify the stored soft labels: for the whole image, and in the crop's geometry.
                rectified_whole = rectifier.rectify(soft, similarity)
                views = (target.whole_view, target.weak_view)
                soft_in_crop, _ = carry(soft, *views, quarter, layout="corners")
                if settings.rectify == "features":
                    features = carry_enlarged(whole.features, *views, quarter, whole_quarter)
                    similarity_in_crop = prototype_similarity(features, clustering.ema_prototypes)
                else:
                    similarity_in_crop, _ = carry(similarity, *views, quarter, layout="corners")
                rectified = rectifier.rectify(soft_in_crop, similarity_in_crop)

                # 4. CutMix: now and then a rectangle of the source and its labels.
                mixed, labels, pasted = cutmix(
                    target.weak,
                    rectified.labels,
                    source.image,
                    source.label,
                    probability=settings.cutmix_probability,
                )

            # 5. Consistency of the student's strong view with the teacher, relative to the prototypes.
            with local_gradients(learn), autocast(process.device, config.precision):
                features = learn(to_unit(target.strong)).features
                similarity_student = prototype_similarity(features, clustering.ema_prototypes)
                similarity_teacher, seen = carry(
                    similarity_in_crop,
                    target.weak_view,
                    target.strong_view,
                    features.shape[2:],
                    layout="corners",
                )
                loss_consistency = prototype_consistency(
                    similarity_teacher, similarity_student, seen, temperature=settings.temperature
                )
                optimization.backward(settings.consistency_weight * loss_consistency)

            # 6. Symmetric cross-entropy of the student on the weak view. The last of its passes: all
            # parameters take part, which DDP's averaging of gradients relies on.
            with local_gradients(learn, when=more), autocast(process.device, config.precision):
                weak = learn(to_unit(mixed))
                loss_target = symmetric_cross_entropy(
                    resize(weak.logits, quarter),
                    labels,
                    ce_weight=settings.ce_weight,
                    rce_weight=settings.rce_weight,
                )
                if settings.contrast_weight > 0:
                    unmixed = rectified.labels.masked_fill(pasted[:, None, None], 255)
                    contrast = clustering.contrast(weak.features, unmixed)
                    loss_target = loss_target + settings.contrast_weight * contrast
                optimization.backward(loss_target)

            # 7. Self-labeling: the teacher's pixels are assigned to the prototypes and move them.
            with local_gradients(cluster, when=more):
                clusters = cluster(
                    whole.features,
                    rectified_whole.labels,
                    logits=whole.logits if settings.logit_assignments else None,
                    bank_labels=labels_of_crop(
                        rectified.labels, whole.features.shape[2:], settings.samples_per_image
                    )
                    if settings.bank_labels == "crop"
                    else None,
                )
                optimization.backward(settings.self_label_weight * clusters.loss)

            loop.record(
                loss_source=loss_source,
                loss_target=loss_target,
                loss_self_label=clusters.loss,
                loss_consistency=loss_consistency,
                confidence=rectified_whole.confidence.mean(),
                marginal_error=clusters.marginal_error,
            )
            clustered.append(clusters)
            if part == 0 and loop.shows(iteration):
                picture = training_picture(config, mixed, labels, target.strong)
                loop.picture(iteration, "target with pseudo labels, strong view", picture)

        # 8. Move student and prototypes, then their moving averages, the bank and the distribution.
        optimization.step()
        teacher.update(student, settings.teacher_momentum)
        clustering.update(clustered, settings.teacher_momentum)
        hand_on.look(loop, iteration)

    hand_on.save()
    if process.is_main:
        save_model(config.output / stage / "teacher.pt", teacher.module, config)
        save(config.output / stage / "clustering.pt", clustering.state_dict())
    return loop.cost


if __name__ == "__main__":
    main("self_label", self_label)
