import re
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.reporting.runs import BAD, CLASSES, GOOD, NEARLY, TALL, TRUTH, failed, report, slight
from app.sample_report import build_report
from cpsl.app.reporting.changes import class_changes
from cpsl.app.reporting.content import DataSet, Kind, Report
from cpsl.app.reporting.verdict import Verdict, judge
from cpsl.app.selection import SCORE, SCORE_IN_WORDS
from cpsl.collapse import PRESENT


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (report(BAD, GOOD), "better"),
        (report(GOOD, BAD), "worse"),
        (slight(NEARLY, TALL), "small_gain"),
        (slight(TALL, NEARLY), "small_loss"),
        (slight(NEARLY, TALL, chosen="source_only"), "small_gain"),
        (slight(TALL, NEARLY, chosen="source_only"), "rejected"),
        (report(BAD, GOOD, iterations={"online": 150}), "trial_gain"),
        (report(GOOD, BAD, iterations={"online": 150}), "trial_loss"),
        (report(BAD, GOOD, iterations={"online": 150}, chosen="source_only"), "trial_gain"),
        (report(BAD, BAD, iterations={"online": 150}), "unclear"),
        (report(BAD, GOOD, labeled=False, iterations={"online": 150}), "unlabeled"),
        (report(BAD, BAD), "unclear"),
        (report(BAD, GOOD, images=1), "unclear"),
        (report(GOOD, BAD, chosen="source_only"), "rejected"),
        (report(BAD, GOOD, chosen="source_only"), "overlooked"),
        (report(BAD, BAD, chosen="source_only"), "unclear"),
        (report(BAD, GOOD, labeled=False, chosen="source_only"), "open"),
        (failed(report(BAD, GOOD, chosen="source_only")), "rejected"),
        (failed(report(BAD, GOOD, labeled=False, chosen="source_only")), "rejected"),
        (failed(report(BAD, GOOD, labeled=False, chosen="source_only"), diverged=True), "rejected"),
        (report(BAD, GOOD, labeled=False), "unlabeled"),
        (report(BAD, GOOD, iterations={"source_only": 1000, "online": 12}, longer="adapt x"), "short"),
        (report(BAD, GOOD, data_sets=[DataSet("target", 3, None, "", "")]), "short"),
        (build_report(CLASSES, [TRUTH], {"online": [GOOD]}), "single"),
        (report(BAD, GOOD, finished=False, missing=("distill_1",)), "unfinished"),
        (report(BAD, GOOD, finished=False, iterations={"source_only": 10}), "unfinished"),
    ],
)
def test_the_kind_of_a_run(made: Report, kind: Kind) -> None:
    verdict = judge(made)
    assert verdict.kind == kind
    assert verdict.badge
    assert all(sentence.endswith(".") for sentence in (*verdict.sentences, *verdict.trust, *verdict.problems))
    assert verdict.steps


def test_a_class_that_no_label_has_makes_no_loss() -> None:
    """A network that predicts some pixels of it is not worse for that."""
    labels = TRUTH.clamp_max(1)  # without cars
    before, after = labels.clone(), labels.clone()
    before[:, 2] = 0
    after[0, 0] = 2
    made = build_report(CLASSES, [labels] * 12, {"source_only": [before] * 12, "online": [after] * 12})
    assert made.metrics["online"]["miou"] < made.metrics["source_only"]["miou"]
    verdict = judge(made)
    assert verdict.kind == "better"
    assert "rose" in verdict.sentences[0]
    assert made.mious == (pytest.approx(75.0), pytest.approx(93.75))
    assert "car has no pixel in the labels." in " ".join(verdict.trust)


def test_without_the_labels_of_a_moved_run_the_change_is_not_called_clear() -> None:
    labeled, unlabeled = report(BAD, GOOD), report(BAD, GOOD, labeled=False)
    verdict = judge(replace(labeled, comparison=unlabeled.comparison))
    assert verdict.kind == "untested"
    assert "0 labeled" not in " ".join(verdict.sentences)
    assert "labels cannot be read" in " ".join(verdict.trust)


def test_gains_losses_and_costs_are_named() -> None:
    # Sky is found, half of the car is lost.
    before = torch.where(TRUTH == 1, 0, TRUTH)
    after = torch.where((TRUTH == 2) & (torch.arange(8) > 5), 0, TRUTH)
    text = " ".join(judge(report(before, after)).sentences)
    assert "sky (+100.0)" in text
    assert "car (−50.0)" in text
    assert "road" not in text.partition("lost")[2]
    assert "2 h 5 min for “Source only”, 2 h 5 min for the adaptation" in text
    assert "12 labeled evaluation images" in text


def test_without_labels_the_scores_are_not_called_accuracies() -> None:
    verdict = judge(report(BAD, GOOD, labeled=False))
    assert any("not accuracies" in sentence for sentence in verdict.trust)
    assert any("Label about twenty" in step.text for step in verdict.steps)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_of_run_has_a_headline(kind: Kind) -> None:
    assert Verdict(kind).badge


def test_a_collapse_and_divergence_are_problems() -> None:
    made = report(BAD, GOOD)
    made.metrics["online"] |= {"collapses": ["sky is lost"], "scores": {"non_finite": 3}}
    first, second = judge(made).problems
    assert "sky is lost" in first
    assert "model.pt" in first
    assert "diverged" in second


def test_generated_images_few_labels_and_selection_by_labels_lower_the_trust() -> None:
    made = report(BAD, GOOD, selected="best")
    text = " ".join(judge(made).trust)
    assert "12 labeled images are few" in text
    assert "optimistic" in text
    assert "generated" not in text
    streets = replace(made, data_sets=[DataSet("source", 400, 400, "", "", generated=True)])
    assert "generated" in " ".join(judge(streets).trust)


def test_only_clear_changes_of_classes_count_as_gains_and_losses() -> None:
    # Road and sky are mended; the interval of the road is unknown.
    made = report(torch.where(TRUTH == 1, 0, TRUTH), TRUTH)
    assert made.comparison is not None
    intervals = [None, *made.comparison.class_gains[1:2], None]
    text = " ".join(
        judge(replace(made, comparison=replace(made.comparison, class_gains=intervals))).sentences
    )
    assert "1 class gained at least a point: sky (+100.0)" in text
    assert "1 class changed by a point or more, which another choice of images could explain: road" in text


@pytest.mark.parametrize(
    ("name", "labels"), [("target", "without"), ("source", "with"), ("source 2", "with")]
)
def test_evaluation_images_that_another_data_set_has_are_named(name: str, labels: str) -> None:
    made = report(BAD, GOOD, shared={"source": 0, "target": 0})
    assert "are also" not in " ".join(judge(made).trust)
    for count, words in ((5, "5 of the 12"), (12, "All 12")):
        trust = " ".join(judge(replace(made, shared={**made.shared, name: count})).trust)
        assert trust.count("are also") == 1
        assert f"{words} evaluation images are also images of the {name}" in trust
        assert f", {labels} their labels" in trust


@pytest.mark.parametrize(("made", "word"), [(slight(NEARLY, TALL), "gain"), (slight(TALL, NEARLY), "loss")])
def test_a_small_change_is_no_more_than_another_seed_makes(made: Report, word: str) -> None:
    verdict = judge(made)
    assert f"small {word}" in verdict.badge.lower()
    assert word in verdict.trust_in_brief
    assert "another seed" in verdict.trust_in_brief
    assert "--seed" in verdict.steps[-1].command


def test_classes_are_sorted_by_their_gain_and_unknown_ones_come_last() -> None:
    made = report(BAD, GOOD)
    made.metrics["online"]["iou"]["road"] = None
    changes = class_changes(made)
    assert changes[-1].name == "road"
    assert changes[-1].gain is None
    gains = [change.gain for change in changes if change.gain is not None]
    assert gains == sorted(gains, reverse=True)


def test_the_sentence_about_trust_is_no_stronger_than_the_evidence() -> None:
    assert "likely" in judge(report(BAD, GOOD)).trust_in_brief
    assert "well supported" in judge(report(BAD, GOOD, images=60)).trust_in_brief
    assert "helped" in judge(report(BAD, GOOD, chosen="source_only")).trust_in_brief
    assert "did harm" in judge(report(GOOD, BAD)).trust_in_brief
    collapsed = failed(report(BAD, GOOD, chosen="source_only"))
    for made in (report(BAD, BAD), report(BAD, GOOD, labeled=False), collapsed):
        assert not {"helped", "harm"} & set(judge(made).trust_in_brief.split())
    short = report(BAD, GOOD, iterations={"online": 12})
    assert judge(short).trust_in_brief.startswith("Not at all")


def test_without_labels_the_classes_that_grew_and_shrank_are_named() -> None:
    text = " ".join(judge(report(TRUTH, TRUTH.clamp(max=1), labeled=False)).sentences)
    assert "car shrank from 50 % to 0 %" in text
    assert "sky grew from 25 % to 75 %" in text
    assert "road" not in text
    same = judge(report(TRUTH, TRUTH, labeled=False))
    assert "grew" not in " ".join(same.sentences)
    assert any("failures are absent" in sentence for sentence in same.trust)
    collapsed = report(TRUTH, TRUTH, labeled=False)
    collapsed.metrics["online"]["collapses"] = ["sky is lost"]
    assert not any("failures are absent" in sentence for sentence in judge(collapsed).trust)


@settings(max_examples=25, deadline=None)
@given(after=st.lists(st.integers(0, 2), min_size=8, max_size=8), labeled=st.booleans())
def test_failures_are_absent_only_if_all_classes_of_the_source_are_predicted(
    after: list[int], labeled: bool
) -> None:
    prediction = torch.tensor([after]).repeat(4, 1)
    verdict = judge(report(prediction, prediction, labeled=labeled, images=2))
    missing = {CLASSES[k] for k in range(3) if k not in after}
    said = [sentence for sentence in verdict.sentences if "of the source" in sentence]
    assert bool(said) == (bool(missing) and not labeled)
    if said:
        assert f"{len(missing)} of 3 classes of the source" in said[0]
        assert {name for name in CLASSES if f"{name} (33 %" in said[0]} == missing
    assert any("failures are absent" in s for s in verdict.trust) == (not missing and not labeled)
    unknown = replace(report(prediction, prediction, labeled=labeled, images=2), source_labels={})
    assert "failures are absent" not in " ".join(judge(unknown).trust)


@pytest.mark.parametrize(
    ("after", "agree"), [(0.53, "more than before"), (0.47, "less than before"), (0.51, "about as much as")]
)
def test_a_small_change_of_the_consistency_is_no_gain(after: float, agree: str) -> None:
    made = report(BAD, GOOD, labeled=False)
    made.metrics["online"] |= {"scores": {"flip_miou": after}, "mirrored": 5}
    text = " ".join(judge(made).sentences)
    assert f"agree {agree}" in text
    assert f"0.500 before, {after:.3f} after on 5 images" in text


def test_the_consistency_of_a_rejected_network_is_not_called_the_same() -> None:
    made = report(BAD, GOOD, labeled=False, chosen="source_only")
    made.metrics["online"] |= {"scores": {"flip_miou": 0.499}}
    assert "agree less than before" in " ".join(judge(made).sentences)


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize(("chosen", "said"), [("warmup", True), ("self_label", False)])
def test_the_report_says_why_a_run_ends_with_a_stage_before_the_last(
    labeled: bool, chosen: str, said: bool
) -> None:
    predictions = {"source_only": [BAD], "warmup": [GOOD], "self_label": [GOOD]}
    reason = f"its {SCORE_IN_WORDS} is the highest: 0.510, and self_label is excluded"
    made = build_report(CLASSES, [TRUTH if labeled else None], predictions, chosen=chosen, reason=reason)
    text = " ".join(judge(made).sentences)
    assert (reason in text) == said
    assert text.count(SCORE_IN_WORDS) == (1 if said or not labeled else 0)


@given(st.lists(st.floats(0, 2**-7, width=32), min_size=6, max_size=6), st.floats(0, 1))
def test_newly_predicted_classes_explain_a_lower_consistency(shares: list[float], after: float) -> None:
    made = report(BAD, GOOD, labeled=False)
    ends = shares[:3], shares[3:]
    for stage, score, of_stage in zip(made.metrics, (0.5, after), ends, strict=True):
        made.metrics[stage] |= {"scores": {"flip_miou": score}, "class_frequency": of_stage}
    (before, now), text = ends, " ".join(judge(made).sentences)
    new = [name for name, b, a in zip(CLASSES, before, now, strict=True) if b < PRESENT and a > 2 * b]
    assert ("Newly predicted" in text) == (bool(new) and after < 0.5)
    if "Newly predicted" in text:
        inside = re.search(r"Newly predicted classes \((.+?)\)", text)
        assert inside
        assert [name for name in CLASSES if name in inside[1]] == new


@pytest.mark.parametrize(("after", "word"), [(0.53, "higher"), (0.47, "lower"), (0.51, "about as high as")])
def test_the_score_that_chooses_is_said_once(after: float, word: str) -> None:
    made = report(BAD, GOOD, labeled=False)
    for stage, value in zip(made.metrics, (0.5, after), strict=True):
        made.metrics[stage] |= {"scores": {SCORE: value}}
    text = " ".join(judge(made).sentences)
    assert f"{SCORE_IN_WORDS}, the score that chooses, is {word}" in text
    assert f"0.500 before, {after:.3f} after" in text
    kept = replace(made, chosen="source_only", reason=f"its {SCORE_IN_WORDS} is the highest: 0.500")
    assert " ".join(judge(kept).sentences).count(SCORE_IN_WORDS) == 1


@pytest.mark.parametrize("labeled", [True, False])
def test_few_confident_pseudo_labels_at_the_end_are_a_reason_for_doubt(labeled: bool) -> None:
    def trust(*confident: float) -> str:
        curve = list(enumerate(confident))
        return " ".join(judge(report(BAD, GOOD, labeled, curves={"online": {"confident": curve}})).trust)

    assert "only 3.0 % of the pseudo labels" in trust(0.5, 0.5, *[0.03] * 5)
    assert "pseudo labels" not in trust(0.01, *[0.6] * 5)


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize(("steps", "few"), [(100, True), (499, True), (500, False), (20_000, False)])
def test_a_tenth_of_the_usual_steps_is_a_reason_for_doubt(steps: int, few: bool, labeled: bool) -> None:
    made = report(BAD, GOOD, labeled, iterations={"source_only": 1000, "online": steps})
    text = " ".join(judge(made).trust)
    assert (f"recipe “cpu”: “Online self-labeling” {steps} steps instead of 1,000" in text) == few
    assert "“Source only” 1,000 steps" not in text
    streets = replace(made, data_sets=[DataSet("target", 200, None, "", "", generated=True)])
    shorter = f"recipe “demo”: “Online self-labeling” {steps} steps instead of 240"
    assert (shorter in " ".join(judge(streets).trust)) == (steps < 120)


@pytest.mark.parametrize("labeled", [True, False])
def test_the_figures_of_a_collapse_are_said_once(labeled: bool) -> None:
    made = report(TRUTH, TRUTH.clamp(max=1), labeled, chosen="source_only", reason="it is excluded (0.00 %)")
    made.metrics["online"]["collapses"] = ["car is lost: 0.00 % of the predicted pixels, 50.00 % before"]
    verdict = judge(made)
    text = " ".join(verdict.sentences)
    assert "collapsed, since car is lost." in text
    assert "0.00 %" not in text
    assert text.count("car shrank from 50 % to 0 %") == 1
    assert "50.00 % before" in verdict.problems[0]
