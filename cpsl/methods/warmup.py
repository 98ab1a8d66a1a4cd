"""Stage 0: adversarial alignment of the output space (AdaptSegNet, Tsai et al., 2018)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from cpsl._internal.distributed import no_sync, unwrap
from cpsl.data.training import SourceBatch, TargetBatch
from cpsl.losses import cross_entropy, discriminator_loss, generator_loss
from cpsl.methods.step import Method, Supervision, check_student, to_float
from cpsl.models.network import resize, segment


class AdversarialWarmup(Method):
    """Trains a network on the source, and aligns its target outputs with its source outputs.

    The first two losses have gradients for `network` only, the third for `discriminator` only, so one
    optimizer may hold the parameters of both. A frozen discriminator has no third loss.

    Args:
        network: Implements `cpsl.models.SegmentationNetwork`; may be wrapped in DistributedDataParallel.
        discriminator: Such as `cpsl.models.Discriminator`; may be wrapped. None trains on the source alone.
        adversarial_weight: Weight of the adversarial loss.

    Example:
        >>> import torch
        >>> from cpsl.models import DeepLabV2, Discriminator
        >>> from cpsl.testing import training_batches
        >>> source, target = training_batches(num_classes=3)
        >>> network = DeepLabV2(3, "resnet_tiny", feature_dim=8)
        >>> method = AdversarialWarmup(network, Discriminator(3, width=4))
        >>> optimizer = torch.optim.SGD(method.parameters(), lr=1e-3)
        >>> for loss in method.losses(source, target):
        ...     loss.backward()
        >>> optimizer.step()
        >>> list(method.metrics)
        ['loss_source', 'loss_adversarial', 'loss_discriminator']
    """

    def __init__(
        self, network: nn.Module, discriminator: nn.Module | None = None, *, adversarial_weight: float = 0.01
    ) -> None:
        super().__init__()
        self.network = network
        self.discriminator = discriminator
        self.adversarial_weight = adversarial_weight
        self.align_corners = check_student(network).align_corners

    def losses(
        self, source: SourceBatch, target: TargetBatch | None = None, *, last_micro_batch: bool = True
    ) -> Iterator[Tensor]:
        """Yields the losses; see `Method.losses`. Without a discriminator, no target batch is needed."""
        if self.discriminator is not None and target is None:
            raise ValueError("a discriminator needs a target batch")

        # 1. Cross-entropy on the source.
        with no_sync(self.network, when=not last_micro_batch or self.discriminator is not None):
            logits = segment(self.network, to_float(source.image)).logits
        logits_source = resize(logits, source.label.shape[1:], self.align_corners)
        loss_source = cross_entropy(logits_source, source.label)
        self.metrics = {"loss_source": loss_source.detach()}
        self.supervision = Supervision(source.image, source.label)
        yield loss_source
        if self.discriminator is None or target is None:
            return

        # 2. Adversarial loss of the network: the discriminator should classify the target as source.
        with no_sync(self.network, when=not last_micro_batch):
            logits = segment(self.network, to_float(target.weak)).logits
        logits_target = resize(logits, target.weak.shape[2:], self.align_corners)
        discriminator: nn.Module = unwrap(self.discriminator)
        with _frozen(discriminator):
            loss_adversarial = generator_loss(discriminator(logits_target.softmax(dim=1)))
        self.metrics["loss_adversarial"] = loss_adversarial.detach()
        yield self.adversarial_weight * loss_adversarial

        # 3. Loss of the discriminator, which classifies the domains.
        with no_sync(self.discriminator, when=not last_micro_batch):
            loss_discriminator = discriminator_loss(
                self.discriminator(logits_source.detach().softmax(dim=1)),
                self.discriminator(logits_target.detach().softmax(dim=1)),
            )
        self.metrics["loss_discriminator"] = loss_discriminator.detach()
        if any(parameter.requires_grad for parameter in discriminator.parameters()):
            yield loss_discriminator


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Disables the gradients of a module; parameters that were frozen before remain so."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
