import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.alignment import DistributionAligner, class_counts
from cpsl.sinkhorn import sinkhorn


@given(
    momentum=st.floats(0, 1),
    ignored=st.integers(0, 40),
    dtype=st.sampled_from([torch.uint8, torch.int32, torch.int64]),
    seed=st.integers(0, 10_000),
)
def test_the_distribution_averages_the_label_frequencies(
    momentum: float, ignored: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    labels = torch.randint(4, (8, 5))
    labels.view(-1)[:ignored] = 255
    aligner = DistributionAligner(4, momentum)
    aligner.update(labels.to(dtype))
    valid = labels[labels != 255]
    batch = torch.bincount(valid, minlength=4) / max(len(valid), 1) if len(valid) else torch.full((4,), 0.25)
    expected = momentum * 0.25 + (1 - momentum) * batch
    torch.testing.assert_close(aligner.distribution, expected)
    torch.testing.assert_close(aligner.distribution.sum(), torch.tensor(1.0))


@given(seed=st.integers(0, 10_000))
def test_one_hot_probabilities_equal_labels(seed: int) -> None:
    torch.manual_seed(seed)
    labels = torch.randint(3, (2, 4, 5))
    from_labels, from_probabilities = DistributionAligner(3, 0.5), DistributionAligner(3, 0.5)
    from_labels.update(labels)
    from_probabilities.update(torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float())
    torch.testing.assert_close(from_labels.distribution, from_probabilities.distribution)


@given(momentum=st.floats(0, 1), seed=st.integers(0, 10_000))
def test_an_update_that_is_not_applied_changes_nothing(momentum: float, seed: int) -> None:
    torch.manual_seed(seed)
    aligner = DistributionAligner(4, momentum, initial=torch.rand(4) + 0.1)
    unconditional = DistributionAligner(4, momentum, initial=aligner.distribution)
    unconditional.load_state_dict(aligner.state_dict())
    before, labels = aligner.distribution.clone(), torch.randint(4, (8, 5))
    aligner.update(labels, applied=torch.tensor(False))
    assert torch.equal(aligner.distribution, before)
    aligner.update(labels, applied=torch.tensor(True))
    unconditional.update(labels)
    assert torch.equal(aligner.distribution, unconditional.distribution)


def test_a_batch_of_ignored_pixels_changes_nothing() -> None:
    aligner = DistributionAligner(2, 0.5, initial=torch.tensor([3.0, 1.0]))
    aligner.update(torch.full((2, 3), 255))
    assert aligner.distribution.tolist() == [0.75, 0.25]


def test_assignments_use_the_distribution_as_marginal() -> None:
    aligner = DistributionAligner(3, initial=torch.tensor([0.7, 0.3, 0.0]))
    scores = torch.rand(50, 3)
    got = aligner(scores, epsilon=0.1, iterations=4)
    torch.testing.assert_close(got, sinkhorn(scores, aligner.distribution, epsilon=0.1, iterations=4))


def test_the_distribution_is_part_of_the_state() -> None:
    aligner = DistributionAligner(2, initial=torch.tensor([0.9, 0.1]))
    other = DistributionAligner(2)
    other.load_state_dict(aligner.state_dict())
    assert torch.equal(other.distribution, aligner.distribution)


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_momentum_outside_0_to_1_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum"):
        DistributionAligner(2, momentum)


def test_invalid_labels_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[7, 254\]"):
        class_counts(torch.tensor([0, 7, 254, 255]), num_classes=3)


def test_probabilities_of_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"probabilities must be \(B, 3, \.\.\.\)"):
        DistributionAligner(3).update(torch.rand(2, 4, 5))
