import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cpsl.rectification import PseudoLabelRectifier, agreeing_labels


@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 1))
def test_rectified_labels_equal_the_equation(seed: int, threshold: float) -> None:
    torch.manual_seed(seed)
    soft = torch.rand(2, 4, 3, 5).softmax(dim=1)
    features, prototypes = torch.randn(2, 6, 3, 5), torch.randn(4, 6)
    got = PseudoLabelRectifier(0.2, threshold)(soft, features, prototypes)
    cosine = F.cosine_similarity(features[:, None], prototypes[None, :, :, None, None], dim=2)
    product = (cosine / 0.2).softmax(dim=1) * soft
    probabilities = product / product.sum(dim=1, keepdim=True)
    torch.testing.assert_close(got.probabilities, probabilities)
    torch.testing.assert_close(got.confidence, probabilities.amax(dim=1))
    expected = probabilities.argmax(dim=1)
    sure = (got.confidence - threshold).abs() > 1e-5
    expected[got.confidence < threshold] = 255
    assert torch.equal(got.labels[sure], expected[sure])


@given(seed=st.integers(0, 10_000), correction=st.floats(0, 2))
def test_the_prior_correction_equals_the_equation(seed: int, correction: float) -> None:
    torch.manual_seed(seed)
    soft, delta = torch.rand(2, 4, 3, 5).softmax(dim=1), torch.rand(4) + 0.01
    features, prototypes = torch.randn(2, 6, 3, 5), torch.randn(4, 6)
    rectifier = PseudoLabelRectifier(0.2, prior_correction=correction)
    got = rectifier(soft, features, prototypes, delta)
    plain = PseudoLabelRectifier(0.2)(soft, features, prototypes).probabilities
    product = plain / (delta / delta.sum())[:, None, None] ** correction
    torch.testing.assert_close(got.probabilities, product / product.sum(dim=1, keepdim=True))
    counts = rectifier(soft, features, prototypes, 1000 * delta)
    torch.testing.assert_close(counts.probabilities, got.probabilities)


@given(seed=st.integers(0, 10_000))
def test_the_default_does_not_use_the_class_distribution(seed: int) -> None:
    torch.manual_seed(seed)
    inputs = torch.rand(2, 4, 3, 5).softmax(dim=1), torch.randn(2, 6, 3, 5), torch.randn(4, 6)
    for got, wanted in zip(
        PseudoLabelRectifier()(*inputs, torch.rand(4)), PseudoLabelRectifier()(*inputs), strict=True
    ):
        assert torch.equal(got, wanted)


def test_the_prior_correction_of_an_absent_class_is_finite() -> None:
    soft = torch.tensor([0.9, 0.1, 0.0]).reshape(1, 3, 1, 1)
    rectifier = PseudoLabelRectifier(prior_correction=1)
    got = rectifier(soft, torch.ones(1, 2, 1, 1), torch.ones(3, 2), torch.tensor([1.0, 0.0, 0.0]))
    assert got.probabilities.isfinite().all()
    assert got.labels.item() == 1
    nothing = rectifier(0 * soft, torch.ones(1, 2, 1, 1), torch.ones(3, 2), torch.tensor([1.0, 0.0, 0.0]))
    assert nothing.labels.item() == 255


def test_the_prior_correction_needs_a_class_distribution() -> None:
    rectifier = PseudoLabelRectifier(prior_correction=0.5)
    inputs = torch.rand(1, 3, 2, 2), torch.rand(1, 3, 2, 2)
    with pytest.raises(ValueError, match="class_distribution"):
        rectifier.rectify(*inputs)
    for wrong in (torch.ones(4), torch.tensor([1.0, torch.nan, 1.0])):
        with pytest.raises(ValueError, match="class distribution"):
            rectifier.rectify(*inputs, wrong)


def test_rectified_labels_agree_with_the_authors_code(golden) -> None:
    vectors = golden("rectify_identity")
    arrays = {name: torch.from_numpy(vectors[name]) for name in ("soft", "features", "prototypes")}
    rectifier = PseudoLabelRectifier(float(vectors["temperature"]), interpolate="features")
    got = rectifier(arrays["soft"], arrays["features"], arrays["prototypes"])
    confidence = torch.from_numpy(vectors["confidence"])
    assert (got.confidence - confidence).abs().max() / confidence.max() <= 1e-4
    assert torch.equal(got.labels, torch.from_numpy(vectors["labels"]))


def test_resizing_cosines_is_close_to_resizing_smooth_features() -> None:
    torch.manual_seed(0)
    features = F.interpolate(torch.randn(1, 16, 3, 5), (17, 33), mode="bicubic")
    soft, prototypes = torch.rand(1, 4, 32, 64).softmax(dim=1), torch.randn(4, 16)
    cosines = PseudoLabelRectifier()(soft, features, prototypes)
    resized = PseudoLabelRectifier(interpolate="features")(soft, features, prototypes)
    assert (cosines.confidence - resized.confidence).abs().mean() < 0.01
    assert (cosines.labels == resized.labels).float().mean() > 0.99


def test_features_correct_the_stored_label() -> None:
    soft = torch.tensor([0.6, 0.4]).reshape(1, 2, 1, 1)
    prototypes = torch.eye(2)
    towards = [
        int(PseudoLabelRectifier()(soft, prototypes[k].reshape(1, 2, 1, 1), prototypes).labels)
        for k in range(2)
    ]
    assert towards == [0, 1]


def test_pixels_without_probabilities_are_ignored() -> None:
    soft = torch.zeros(1, 3, 2, 2)
    soft[0, 1, 0, 0] = 1
    soft[0, 0, 1, 1] = torch.nan
    got = PseudoLabelRectifier(ignore_index=99)(soft, torch.randn(1, 4, 2, 2), torch.randn(3, 4))
    assert got.labels.tolist() == [[[1, 99], [99, 99]]]
    assert got.confidence[0, 0, 1] == 0


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"threshold": 1.5}, {"interpolate": "nearest"}, {"prior_correction": -1}]
)
def test_invalid_options_are_named(options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PseudoLabelRectifier(**options)


def test_wrong_shapes_are_named() -> None:
    rectifier = PseudoLabelRectifier()
    with pytest.raises(ValueError, match=r"soft labels must be \(1, 5, H, W\)"):
        rectifier(torch.rand(1, 3, 4, 4), torch.rand(1, 8, 4, 4), torch.rand(5, 8))
    with pytest.raises(ValueError, match="similarity must be"):
        rectifier.rectify(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 5))


@given(seed=st.integers(0, 10_000), classes=st.integers(1, 5), ignore_index=st.sampled_from([-1, 255]))
def test_labels_remain_where_the_clusters_agree(seed: int, classes: int, ignore_index: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, classes, (2, 3, 5), generator=generator)
    labels[labels == -1] = ignore_index
    assignments = torch.randn(2, classes, 3, 5, generator=generator).softmax(dim=1)
    got = agreeing_labels(labels, assignments, ignore_index)
    agree = labels == assignments.argmax(dim=1)
    assert torch.equal(got[agree], labels[agree])
    assert (got[~agree] == ignore_index).all()
    assert torch.equal(agreeing_labels(assignments.argmax(dim=1), assignments), assignments.argmax(dim=1))
    if classes > 1:
        assert (agreeing_labels(assignments.argmin(dim=1), assignments) == 255).all()


@given(
    value=st.sampled_from([0.0, torch.nan, torch.inf, -torch.inf]),
    classes=st.integers(1, 4),
    every=st.booleans(),
)
def test_pixels_that_are_not_assigned_agree_with_no_label(value: float, classes: int, every: bool) -> None:
    labels = torch.arange(classes).reshape(1, 1, classes)
    assignments = torch.full((1, classes, 1, classes), value)
    if value != 0 and not every:  # a single class
        assignments[:, 1:] = 0.5
    assert (agreeing_labels(labels, assignments) == 255).all()


def test_labels_that_do_not_match_the_assignments_are_named() -> None:
    labels, assignments = torch.zeros(1, 2, 3, dtype=torch.int64), torch.ones(1, 4, 2, 3) / 4
    with pytest.raises(ValueError, match="labels"):
        agreeing_labels(labels[:, 1:], assignments)
    with pytest.raises(ValueError, match="assignments"):
        agreeing_labels(labels, assignments[0])
    with pytest.raises(ValueError, match="7"):
        agreeing_labels(labels + 7, assignments)
    with pytest.raises(TypeError, match="labels"):
        agreeing_labels(labels.float(), assignments)
