"""Stage 0: a model of the source whose output looks alike on both domains (Tsai et al., 2018).

    python examples/warmup.py --config examples/configs/gta5_to_cityscapes.toml

With adversarial weight 0 the same trainer gives the source-only model that adaptation is compared with.
"""

import torch

from config import Config
from cpsl.engine import Optimization, Process, TrainingLoop, autocast, local_gradients
from cpsl.losses import cross_entropy, discriminator_loss, generator_loss
from cpsl.models import Discriminator, freeze_batch_norm
from domains import source_batches, target_batches, training_picture
from networks import build_model, build_optimization, resize, save_model, to_unit
from stage import main


def warm_up(config: Config, process: Process, stage: str = "warmup") -> float:
    """Trains the warm-up model, or with `stage="source_only"` the model without adaptation."""
    settings = config.source_only if stage == "source_only" else config.warmup
    source_only = config.output / "source_only" / "model.pt"
    start = source_only if settings.start == "source_only" else settings.start
    model = build_model(config, start).to(process.device).train()
    if settings.freeze_batch_norm:
        freeze_batch_norm(model)
    optimization = build_optimization(config, settings, model)
    discriminator = Discriminator(model.num_classes, settings.discriminator_width).to(
        process.device
    )
    discriminator_optimization = Optimization(
        torch.optim.Adam(
            discriminator.parameters(), settings.discriminator_learning_rate, betas=(0.9, 0.99)
        ),
        settings.iterations,
        precision=config.precision,
        accumulate=config.accumulate,
    )
    loop = TrainingLoop(
        config.output / stage,
        stage,
        iterations=settings.iterations,
        seed=config.seed,
        process=process,
        state={
            "model": model,
            "optimization": optimization,
            "discriminator": discriminator,
            "discriminator_optimization": discriminator_optimization,
        },
        checkpoint_every=config.checkpoint_every,
    )
    segment, judge = process.parallel(model), process.parallel(discriminator)
    sources = source_batches(config, stage, process, settings.batch_size, loop.start)
    targets = target_batches(config, stage, process, settings.batch_size, loop.start)

    for iteration in loop:
        for part in range(config.accumulate):
            more = part + 1 < config.accumulate
            # 1. Segment the source as its labels say.
            source = next(sources)
            with (
                local_gradients(segment, when=more or settings.adversarial_weight > 0),
                autocast(process.device, config.precision),
            ):
                logits_source = resize(
                    segment(to_unit(source.image)).logits, source.label.shape[1:]
                )
                loss_source = cross_entropy(logits_source, source.label)
                optimization.backward(loss_source)
            loop.record(loss_source=loss_source)
            if part == 0 and loop.shows(iteration):
                picture = training_picture(config, source.image, source.label)
                loop.picture(iteration, "source with labels", picture)
            if settings.adversarial_weight == 0:
                continue

            # 2. Segment the target so that the discriminator takes it for the source.
            target = next(targets)
            discriminator.requires_grad_(False)
            with local_gradients(segment, when=more), autocast(process.device, config.precision):
                logits_target = resize(segment(to_unit(target.weak)).logits, target.weak.shape[2:])
                loss_adversarial = generator_loss(discriminator(logits_target.softmax(dim=1)))
                optimization.backward(settings.adversarial_weight * loss_adversarial)

            # 3. Train the discriminator to tell them apart.
            discriminator.requires_grad_(True)
            with local_gradients(judge, when=more), autocast(process.device, config.precision):
                loss_discriminator = discriminator_loss(
                    judge(logits_source.detach().softmax(dim=1)),
                    judge(logits_target.detach().softmax(dim=1)),
                )
                discriminator_optimization.backward(loss_discriminator)
            loop.record(loss_adversarial=loss_adversarial, loss_discriminator=loss_discriminator)
        optimization.step()
        if settings.adversarial_weight > 0:
            discriminator_optimization.step()

    if process.is_main:
        save_model(config.output / stage / "model.pt", model, config)
    return loop.seconds


if __name__ == "__main__":
    main("warmup", warm_up)
