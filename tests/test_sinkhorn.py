import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpsl.sinkhorn import marginal_error, sinkhorn


def reference(scores: Tensor, marginal: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Computes Sinkhorn-Knopp by its definition, in float64 and without protection from overflow."""
    q = (scores.double() / epsilon).exp()
    for _ in range(iterations):
        q = q * (marginal.double() / q.sum(dim=0))
        q = q / q.sum(dim=1, keepdim=True)
    return q


@given(
    pixels=st.integers(1, 60),
    classes=st.integers(1, 8),
    epsilon=st.floats(0.05, 2),
    iterations=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
def test_assignments_equal_the_definition(
    pixels: int, classes: int, epsilon: float, iterations: int, seed: int
) -> None:
    torch.manual_seed(seed)
    scores = torch.rand(pixels, classes) * 2 - 1
    marginal = torch.rand(classes) + 0.01
    marginal /= marginal.sum()
    got = sinkhorn(scores, marginal, epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(
        got.double(), reference(scores, marginal, epsilon, iterations), atol=1e-5, rtol=1e-4
    )


@given(
    scale=st.sampled_from([0.0, 1.0, 100.0, 1e4]),
    zeros=st.integers(0, 6),
    iterations=st.integers(1, 20),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 10_000),
)
def test_rows_sum_to_one_for_any_scores_and_marginals(
    scale: float, zeros: int, iterations: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    scores = ((torch.rand(40, 7) * 2 - 1) * scale).to(dtype)
    marginal = torch.rand(7) + 0.01
    absent = torch.randperm(7)[:zeros]
    marginal[absent] = 0
    assignments = sinkhorn(scores, marginal, iterations=iterations)
    assert assignments.dtype == torch.float32
    assert assignments.isfinite().all()
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(40))
    assert (assignments[:, absent] == 0).all()


@given(seed=st.integers(0, 10_000))
def test_assignments_converge_to_the_marginal(seed: int) -> None:
    torch.manual_seed(seed)
    marginal = torch.rand(5) + 0.1
    scores = torch.rand(200, 5)
    few = sinkhorn(scores, marginal, epsilon=0.2, iterations=1)
    many = sinkhorn(scores, marginal, epsilon=0.2, iterations=200)
    assert marginal_error(many, marginal) < 1e-4
    assert marginal_error(many, marginal) <= marginal_error(few, marginal) + 1e-6


@given(shift=st.floats(-1e3, 1e3), seed=st.integers(0, 10_000))
def test_adding_a_constant_to_all_scores_changes_nothing(shift: float, seed: int) -> None:
    torch.manual_seed(seed)
    scores = torch.rand(30, 4, dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores + shift), sinkhorn(scores), atol=5e-3, rtol=0)


@given(seed=st.integers(0, 10_000))
def test_the_order_of_pixels_and_classes_does_not_matter(seed: int) -> None:
    torch.manual_seed(seed)
    scores, marginal = torch.rand(30, 4), torch.rand(4) + 0.1
    rows, columns = torch.randperm(30), torch.randperm(4)
    permuted = sinkhorn(scores[rows][:, columns], marginal[columns])
    torch.testing.assert_close(permuted, sinkhorn(scores, marginal)[rows][:, columns])


@given(
    seed=st.integers(0, 10_000),
    masked=st.integers(0, 30),
    value=st.sampled_from([-torch.inf, torch.inf, torch.nan]),
    entries=st.integers(1, 4),
)
def test_rows_that_are_not_finite_are_padding(seed: int, masked: int, value: float, entries: int) -> None:
    torch.manual_seed(seed)
    scores, marginal = torch.rand(30, 4), torch.rand(4) + 0.1
    hidden = torch.zeros(30, dtype=torch.bool)
    hidden[torch.randperm(30)[:masked]] = True
    # A single NaN or +inf is enough; a single -inf excludes a class from a pixel.
    filled = torch.rand(30, 4).argsort(dim=1) < (4 if value == -torch.inf else entries)
    got = sinkhorn(scores.masked_fill(hidden[:, None] & filled, value), marginal)
    assert got.isfinite().all()
    assert (got[hidden] == 0).all()
    torch.testing.assert_close(got[~hidden], sinkhorn(scores[~hidden], marginal))


def test_assignments_agree_with_the_authors_code(golden) -> None:
    vectors = golden("sinkhorn")
    got = sinkhorn(
        torch.from_numpy(vectors["scores"]),
        torch.from_numpy(vectors["class_distribution"]),
        epsilon=float(vectors["epsilon"]),
        iterations=int(vectors["iterations"]),
    )
    wanted = vectors["assignments"]  # of every 16th row
    assert np.abs(got[::16].numpy() - wanted).max() / wanted.max() <= 1e-4


def test_no_pixels_give_no_assignments() -> None:
    assert sinkhorn(torch.empty(0, 3)).shape == (0, 3)


def test_scores_are_not_changed_and_get_no_gradient() -> None:
    scores = torch.rand(5, 3, requires_grad=True)
    before = scores.detach().clone()
    assert not sinkhorn(scores).requires_grad
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.rand(3),), {}, ValueError, r"\(N, K\)"),
        ((torch.ones(3, 2, dtype=torch.int64),), {}, TypeError, "floating"),
        ((torch.rand(3, 2), torch.rand(3)), {}, ValueError, r"distribution must be \(2,\), got shape \(3,\)"),
        ((torch.rand(3, 2), torch.zeros(2)), {}, ValueError, "not all zero"),
        ((torch.rand(3, 2), torch.tensor([-1.0, 2])), {}, ValueError, "non-negative"),
        ((torch.rand(3, 2),), {"epsilon": 0.0}, ValueError, "epsilon"),
        ((torch.rand(3, 2),), {"iterations": 0}, ValueError, "iterations"),
    ],
)
def test_invalid_arguments_are_named(arguments, options, error, message) -> None:
    with pytest.raises(error, match=message):
        sinkhorn(*arguments, **options)


def test_sinkhorn_compiles_to_one_graph() -> None:
    scores, marginal = torch.rand(30, 4), torch.rand(4)
    compiled = torch.compile(sinkhorn, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(scores, marginal), sinkhorn(scores, marginal))


@pytest.mark.cuda
def test_cuda_and_cpu_agree() -> None:
    scores, marginal = torch.rand(3000, 19), torch.rand(19)
    torch.testing.assert_close(sinkhorn(scores.cuda(), marginal.cuda()).cpu(), sinkhorn(scores, marginal))
