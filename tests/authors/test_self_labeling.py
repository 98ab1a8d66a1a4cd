import pytest
import torch

from cpsl.authors import AuthorsClustering, AuthorsSelfLabeling
from cpsl.methods import SelfLabeling
from cpsl.models import DeepLabV2, ExponentialMovingAverage
from cpsl.testing import training_batches
from small_networks import Patches

CLUSTERING = {"bank_size": 64, "samples_per_image": 16}
ALL = {"rectify_features": True, "crop_bank_labels": True, "contrast_weight": 0.001}


def losses(method: type[SelfLabeling], steps: int = 3, **options) -> list[float]:
    """Returns the sum of the losses of some steps."""
    torch.manual_seed(0)
    student = DeepLabV2(3, "resnet_tiny", feature_dim=8)
    clustering = AuthorsClustering(3, 8, **CLUSTERING, logit_assignments=bool(options))
    step = method(student, ExponentialMovingAverage(student), clustering, **options)
    optimizer = torch.optim.SGD([p for p in step.parameters() if p.requires_grad], lr=1e-3)
    values = []
    for seed in range(steps):
        loss = step(*training_batches(num_classes=3, seed=seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step.update()
        values.append(loss.item())
    return values


def test_without_options_the_step_is_that_of_the_paper() -> None:
    assert losses(AuthorsSelfLabeling) == losses(SelfLabeling)


@pytest.mark.parametrize("option", [{key: value} for key, value in ALL.items()] + [ALL])
def test_each_option_changes_the_loss(option: dict[str, float]) -> None:
    with_option = losses(AuthorsSelfLabeling, steps=4, **option)
    assert torch.tensor(with_option).isfinite().all()
    assert with_option != losses(AuthorsSelfLabeling, steps=4)


def test_features_of_half_pixel_networks_cannot_be_warped_like_the_authors_do() -> None:
    student = Patches(3, 8, align_corners=False)
    clustering = AuthorsClustering(3, 8, **CLUSTERING)
    with pytest.raises(ValueError, match=r"rectify_features.*corner-aligned"):
        AuthorsSelfLabeling(student, ExponentialMovingAverage(student), clustering, rectify_features=True)
