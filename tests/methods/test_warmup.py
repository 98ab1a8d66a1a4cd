"""The warm-up step equals the equations of AdaptSegNet, written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpsl.methods import AdversarialWarmup
from training_steps import batches, build, gradients, network


def upsample(logits: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


def test_losses_follow_the_equations() -> None:
    method, (source, target) = build("warmup", adversarial_weight=0.3), batches("warmup")
    reference = build("warmup")
    found = list(method.losses(source, target))

    logits = reference.network(source.image / 255).logits
    logits_source = upsample(logits, source.image.shape[2:])
    logits_target = upsample(reference.network(target.weak / 255).logits, target.weak.shape[2:])
    decisions = [reference.discriminator(x.softmax(1)) for x in (logits_source, logits_target)]
    wanted = [
        F.cross_entropy(logits_source, source.label.long(), ignore_index=255),
        0.3 * (decisions[1] - 1).square().mean(),
        (decisions[0] - 1).square().mean() + decisions[1].square().mean(),
    ]
    torch.testing.assert_close(found, wanted)
    assert list(method.metrics) == ["loss_source", "loss_adversarial", "loss_discriminator"]
    torch.testing.assert_close(method.metrics["loss_adversarial"], wanted[1].detach() / 0.3)


def test_ignored_pixels_do_not_count() -> None:
    method, (source, target) = build("warmup"), batches("warmup")
    source.label[:, ::2] = 255
    loss = next(method.losses(source, target))
    logits = upsample(network()(source.image / 255).logits, source.image.shape[2:])
    wanted = F.cross_entropy(logits[:, :, 1::2], source.label[:, 1::2].long())
    torch.testing.assert_close(loss, wanted)


def test_each_loss_reaches_its_own_network() -> None:
    method = build("warmup")
    reached = []
    for loss in method.losses(*batches("warmup")):
        method.zero_grad()
        loss.backward()
        reached.append({name.split(".")[0] for name in gradients(method)})
    assert reached == [{"network"}, {"network"}, {"discriminator"}]


def test_the_discriminator_is_not_frozen_between_losses() -> None:
    method = build("warmup")
    for _ in method.losses(*batches("warmup")):
        assert all(parameter.requires_grad for parameter in method.discriminator.parameters())


@pytest.mark.parametrize("frozen", ["all", "last"])
def test_what_was_frozen_of_the_discriminator_remains_so(frozen: str) -> None:
    method = build("warmup")
    parameters = list(method.discriminator.parameters())
    for parameter in parameters if frozen == "all" else parameters[-1:]:
        parameter.requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in parameters]
    losses = 0
    for loss in method.losses(*batches("warmup")):
        loss.backward()
        losses += 1
        assert [parameter.requires_grad for parameter in parameters] == wanted
    assert losses == (2 if frozen == "all" else 3)


def test_without_a_discriminator_it_trains_on_the_source_alone() -> None:
    method = AdversarialWarmup(network())
    source, _ = batches("warmup")
    (loss,) = method.losses(source)
    torch.testing.assert_close(loss, next(build("warmup").losses(*batches("warmup"))))
    assert method(source) > 0


def test_a_missing_target_batch_is_named_before_any_pass() -> None:
    with pytest.raises(ValueError, match="target"):
        next(build("warmup").losses(batches("warmup")[0]))
