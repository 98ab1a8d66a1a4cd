import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.reporting.runs import BAD, CLASSES, GOOD, TRUTH, failed, report
from app.sample_report import build_report
from cpsl.app.command_line import parse, read_layers
from cpsl.app.reporting.content import DataSet, Report
from cpsl.app.reporting.verdict import judge
from cpsl.app.settings import to_toml


def test_a_harmful_adaptation_names_the_other_network() -> None:
    steps = judge(report(GOOD, BAD)).steps
    predicting = [step.command for step in steps if "predict" in step.command]
    assert len(predicting) == 1
    assert "source_only/model.pt" in predicting[0]


def test_a_rejected_network_that_the_labels_prefer_is_named() -> None:
    collapsed = failed(report(BAD, GOOD, chosen="source_only"))
    assert "online/model.pt" in judge(collapsed).steps[-1].command
    assert not any(step.command for step in judge(report(GOOD, BAD, chosen="source_only")).steps)


def test_the_better_network_that_was_not_chosen_comes_first() -> None:
    verdict = judge(report(BAD, GOOD, chosen="source_only", model="runs/my run/model.pt"))
    assert "--weights 'runs/my run/online/model.pt'" in verdict.steps[0].command
    text = " ".join([*verdict.sentences, *(step.text for step in verdict.steps)])
    assert "the file runs/my run/online/model.pt." in text
    assert "although its mean IoU is lower" in text
    assert "losses" not in text
    assert "wrong" not in text
    # Road and sky are found, a quarter of the car is lost.
    before, after = TRUTH.clone(), TRUTH.clone()
    before[:, 1:4] = 0
    after[:, 7] = 0
    (first, *_) = judge(report(before, after, chosen="source_only")).steps
    assert "losses of car" in first.text


def test_a_run_that_is_too_short_has_the_command_of_a_longer_one() -> None:
    command = "adapt --config mine.toml --output runs/x_longer"
    made = report(BAD, GOOD, iterations={"source_only": 1000, "online": 12}, longer=command)
    (step,) = judge(made).steps
    assert step.command == f"cpsl {command}"
    few = replace(made, data_sets=[DataSet("target", 3, None, "", ""), DataSet("source 1", 2, 2, "", "")])
    assert "target (3)" in judge(few).steps[1].text
    assert "source" not in judge(few).steps[1].text


def test_without_labels_both_networks_can_be_compared() -> None:
    verdict = judge(report(BAD, GOOD, labeled=False, chosen="source_only", model="runs/x/model.pt"))
    commands = [shlex.split(step.command) for step in verdict.steps if step.command]
    assert [words[words.index("--weights") + 1] for words in commands] == [
        "runs/x/model.pt",
        "runs/x/online/model.pt",
    ]
    assert len({words[words.index("--output") + 1] for words in commands}) == 2
    assert "wrong" not in " ".join(step.text for step in verdict.steps)


def advice(made: Report) -> str:
    return " ".join(step.text for step in judge(made).steps)


def test_the_largest_confusion_and_the_errors_of_worse_classes_are_named() -> None:
    # The sky is predicted on three quarters of the car as well: what is wrong is what is predicted.
    flooded = torch.where((TRUTH == 2) & (torch.arange(8) > 4), 1, TRUTH).roll(1, dims=1)
    text = advice(report(TRUTH, flooded))
    assert "sky is predicted 2.5 times as often as it is labeled; 60 % of these pixels are car" in text
    # Sky is missed: what is wrong is what it is taken for.
    missed = torch.where(TRUTH == 1, 0, TRUTH)
    assert "100 % of sky is taken for road" in advice(report(TRUTH, missed))
    half = torch.where((TRUTH == 2) & (torch.arange(8) > 5), 0, TRUTH)
    text = advice(report(TRUTH, half))
    assert "car lost 50.0 points: 50 % of it is taken for road, 0 % before." in text


def test_a_rare_class_is_no_reason_for_advice_on_labels() -> None:
    """Its IoU is the lowest, but the confusion of another class has more pixels."""
    truth = torch.zeros(40, 40, dtype=torch.int64)
    truth[:10], truth[-1, -1] = 1, 2
    after = truth.clone()
    after[:5], after[-1, -5:] = 0, 2  # half of the sky is missed; five pixels are predicted as car, one is
    predictions = {"source_only": [truth.roll(9, dims=0)] * 12, "online": [after] * 12}
    text = advice(build_report(CLASSES, [truth] * 12, predictions))
    assert "50 % of sky is taken for road" in text
    assert "car is predicted" not in text
    predictions["online"] = [torch.where(after == 2, 2, truth)] * 12
    assert "onfusion" not in advice(build_report(CLASSES, [truth] * 12, predictions))


def test_another_seed_with_the_same_first_network_understates_the_spread() -> None:
    assert "lower bound" not in advice(report(BAD, GOOD))
    text = advice(report(BAD, GOOD, iterations={"online": 1000}))
    assert "lower bound" in text
    option = re.search(r"--init\S+ None", text)
    assert option
    words = ["--init-from.source-only", "a.pt", *option[0].split()]
    assert parse(words).init_from.source_only is None


@pytest.mark.parametrize(("before", "after"), [(BAD, GOOD), (GOOD, BAD), (BAD, BAD)])
@pytest.mark.parametrize("labeled", [True, False])
def test_a_trial_is_repeated_with_more_steps_before_anything_else(
    before: Tensor, after: Tensor, labeled: bool
) -> None:
    longer = "adapt --config mine.toml --output runs/x_longer"
    verdict = judge(report(before, after, labeled, iterations={"online": 150}, longer=longer))
    assert "trial" in verdict.trust_in_brief
    assert "1,000 steps" in verdict.trust_in_brief
    assert verdict.steps[0].command == f"cpsl {longer}"
    assert "seed" not in " ".join(step.command for step in verdict.steps)
    assert not {"supported", "helped"} & set(verdict.trust_in_brief.split())


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("name", ["mine", "my run", "."])
def test_the_command_of_another_seed_repeats_the_run_in_another_folder(
    seed: int, name: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(name)
    run.mkdir(exist_ok=True)
    before = replace(read_layers(["demo"]), seed=seed, output=run)
    (run / "config.toml").write_text(to_toml(before))
    made = report(BAD, GOOD, model=(run / "model.pt").as_posix(), seed=seed)
    program, adapt, *words = shlex.split(judge(made).steps[-1].command)
    assert (program, adapt) == ("cpsl", "adapt")
    again = parse(words)
    assert again.seed not in (seed, 0)
    assert again.output.resolve() != run.resolve()
    assert replace(again, seed=seed, output=before.output) == before


def test_a_rejected_network_needs_a_better_start_unless_the_labels_prefer_it() -> None:
    def advised(before: Tensor, after: Tensor) -> bool:
        steps = judge(report(before, after, chosen="source_only")).steps
        return any("needs a good start" in step.text for step in steps)

    assert advised(GOOD, BAD)
    assert not advised(BAD, GOOD)
