"""Stage 0: a model of the source whose output looks alike on both domains (Tsai et al., 2018).

    python examples/warmup.py --config examples/configs/gta5_to_cityscapes.toml

With adversarial weight 0 the same trainer gives the source-only model that adaptation is compared with:
`--stage source_only`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import tyro

from config import Config, parse
from cpsl.engine import Cost, Optimization, Process, TrainingLoop, autocast, local_gradients
from cpsl.losses import cross_entropy, discriminator_loss, generator_loss
from cpsl.models import Discriminator, freeze_batch_norm
from domains import source_batches, target_batches, training_picture
from hand_on import HandOn
from networks import build_model, build_optimization, compile_networks, resize, to_unit
from stage import begin_run, run_stage


def warm_up(config: Config, process: Process, stage: str = "warmup") -> Cost:
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
    hand_on = HandOn(model, stage, config, process)
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
            "hand_on": hand_on,
        },
        checkpoint_every=config.checkpoint_every,
    )
    compile_networks(config, model, discriminator)
    segment, judge = process.parallel(model), process.parallel(discriminator)
    sources = loop.batches(source_batches(config, stage, process, settings.batch_size, loop.start))
    targets = loop.batches(target_batches(config, stage, process, settings.batch_size, loop.start))

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
        hand_on.look(loop, iteration)

    hand_on.save()
    return loop.cost


@dataclass(frozen=True)
class Arguments:
    """Trains the model that self-labeling starts from, or the one that adaptation is compared with."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    stage: Literal["source_only", "warmup"] = "warmup"
    """Which of the two."""


if __name__ == "__main__":
    arguments = parse(Arguments)
    stage, config = arguments.stage, arguments.config
    with begin_run(config) as process:
        run_stage(stage, partial(warm_up, stage=stage), config, process)
