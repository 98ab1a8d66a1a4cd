import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpsl.app import selection
from cpsl.app.command_line import parse
from cpsl.app.config import Config
from cpsl.app.selection import SAME_SCORE, SCORE, SCORE_IN_WORDS, SECOND_SCORE, choose
from cpsl.app.titles import STAGE_TITLES
from cpsl.models import DeepLabV2
from cpsl.training import Process, TrainingLoop, load, read_scalars

PROCESS = Process(torch.device("cpu"))
MIOUS = {0: 15.0, 2: 10.0, 4: 30.0, 6: 20.0, 7: 25.0}  # by iteration of the evaluation
LOST, FINE = [1.0, 0.0], [0.9, 0.1]


class StoppedError(Exception):
    pass


def settings(folder: Path, *options: str) -> Config:
    words = ["--output", str(folder), "--method", "paper", "--source.images", "a", "--target.images", "b"]
    return parse([*words, "--classes", "road", "sky", "--evaluate-every", "2", *options])


def train(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int = -1,
    scores: dict[int, float] | None = None,
    lost: tuple[int, ...] = (),
    stage: str = "warmup",
) -> list[str]:
    """Trains a model whose bias counts the iterations; `lost` are those that predict the first class only.

    Returns the evaluations that the progress showed, at the start and after each iteration.
    """
    model = DeepLabV2(2, "resnet_tiny", 8)
    bias = model.backbone.bn1.bias
    with torch.no_grad():
        bias.zero_()

    def evaluate(*_: Any, **__: Any) -> dict[str, Any]:
        done = round(float(bias[0].detach()))
        score = {SCORE: (scores or {}).get(done, 0.5)}
        return {"miou": MIOUS[done], "scores": score, "class_frequency": LOST if done in lost else FINE}

    monkeypatch.setattr(selection, "evaluate", evaluate)
    monkeypatch.setattr(selection, "source_distribution", lambda _: None)
    checkpoints = selection.CheckpointSelection(model, stage, config, PROCESS)
    loop = TrainingLoop(
        config.output / stage,
        stage,
        iterations=7,
        seed=0,
        process=PROCESS,
        state={"model": model, "selection": checkpoints},
        checkpoint_every=3,
    )
    checkpoints.start(loop)
    shown = [loop.evaluated]
    for iteration in loop:
        if iteration == stop_at:
            raise StoppedError
        with torch.no_grad():
            bias.add_(1)
        checkpoints.update(loop, iteration)
        shown.append(loop.evaluated)
    checkpoints.save()
    return shown


def saved(folder: Path, stage: str = "warmup") -> int:
    """Returns the iteration of the saved weights."""
    return round(float(load(folder / stage / "model.pt")["model"]["backbone.bn1.bias"][0]))


@pytest.mark.parametrize(
    ("which", "wanted", "lost"),
    [
        ("best", 4, ()),
        ("best", 4, (4,)),
        ("last", 7, ()),
        ("last", 7, (4, 6)),
        ("last", 6, (7,)),
        ("score", 6, ()),
        ("score", 2, (4, 6)),
        ("score", 0, (2, 4, 6, 7)),
    ],
)
@pytest.mark.parametrize("stop_at", [-1, 0, 3, 5])
def test_the_selected_weights_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, wanted: int, lost: Any, stop_at: int
) -> None:
    config = settings(tmp_path, "--select-checkpoint", which, "--warmup.start", "source_only")
    scores = {0: 0.1, 2: 0.3, 4: 0.5, 6: 0.6, 7: 0.2}
    if stop_at >= 0:
        with pytest.raises(StoppedError):
            train(config, monkeypatch, stop_at, scores, lost)
    train(config, monkeypatch, -1, scores, lost)
    assert saved(tmp_path) == wanted
    rows = read_scalars(tmp_path / "warmup")
    curve = {row["iteration"]: row["miou"] for row in rows}
    assert curve == {done: miou for done, miou in MIOUS.items() if done}
    assert len(rows) == len(curve)
    assert [row[SCORE] for row in rows] == [scores[done] for done in curve]


def test_start_and_end_are_candidates_without_evaluations_between(tmp_path: Path, monkeypatch) -> None:
    config = settings(tmp_path, "--evaluate-every", "0", "--select-checkpoint", "score")
    train(config, monkeypatch, scores={0: 0.9, 7: 0.2}, stage="self_label")
    assert saved(tmp_path, "self_label") == 0
    assert [row["iteration"] for row in read_scalars(tmp_path / "self_label")] == [7]


@pytest.mark.parametrize("stage", ["source_only", "warmup"])
def test_a_network_that_was_never_trained_is_no_candidate(tmp_path: Path, monkeypatch, stage: str) -> None:
    config = settings(tmp_path, "--select-checkpoint", "score", "--source-only.start", "random")
    train(config, monkeypatch, scores={0: 0.9, 6: 0.6}, lost=(6,), stage=stage)
    # Nor is anything lost since then: what its predictions had were no classes.
    assert saved(tmp_path, stage) == 6


def test_a_collapse_is_found_in_comparison_with_the_first_stage(tmp_path: Path, monkeypatch, caplog) -> None:
    metrics = {"miou": 1.0, "iou": {}, "seconds": 1.0, "class_frequency": FINE}
    (tmp_path / "source_only").mkdir()
    (tmp_path / "source_only" / "metrics.json").write_text(json.dumps(metrics))
    monkeypatch.setattr(logging.getLogger("cpsl"), "propagate", True)
    with caplog.at_level("WARNING", "cpsl"):
        train(settings(tmp_path), monkeypatch, lost=(4, 6, 7))
    assert saved(tmp_path) == 2
    warnings = "\n".join(record.message for record in caplog.records)
    for text in ("warmup after 4 iterations", "sky", "100.00 %", "90.00 %", "not with the last"):
        assert text in warnings


def test_nothing_is_evaluated_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings(tmp_path, "--evaluate-every", "0"), monkeypatch)
    assert read_scalars(tmp_path / "warmup") == []
    assert saved(tmp_path) == 7


@pytest.mark.parametrize(
    ("miou", "before"), [(36.4, "mIoU before: 36.4"), (None, "information before: 0.717")]
)
def test_the_progress_says_that_a_result_is_of_an_earlier_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, miou: float | None, before: str
) -> None:
    scores = {SCORE: 0.717}
    earlier = {"miou": miou, "iou": {}, "scores": scores, "seconds": 1.0, "class_frequency": FINE}
    for run in "ab":
        (tmp_path / run / "source_only").mkdir(parents=True)
        (tmp_path / run / "source_only" / "metrics.json").write_text(json.dumps(earlier))
    never = settings(tmp_path / "a", "--evaluate-every", "0")
    assert train(never, monkeypatch) == 8 * [before]
    often = settings(tmp_path / "b")
    with pytest.raises(StoppedError):
        train(often, monkeypatch, stop_at=1)
    assert train(often, monkeypatch)[:3] == [before, before, "mIoU 10.0"]


def test_a_resumed_stage_shows_its_own_last_evaluation(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(StoppedError):
        train(settings(tmp_path), monkeypatch, stop_at=3)
    shown = train(settings(tmp_path), monkeypatch)
    assert (shown[0], shown[-1]) == ("mIoU 10.0", "mIoU 25.0")


def metrics(score: float | None, *collapses: str) -> dict[str, Any]:
    return {"scores": {SCORE: score}, "collapses": list(collapses)}


def test_a_stage_is_chosen_by_its_score_unless_it_collapsed() -> None:
    stages = {"source_only": metrics(0.3), "warmup": metrics(0.4), "self_label": metrics(0.9, "pole is lost")}
    chosen, reason = choose(stages)
    assert chosen == "warmup"
    for text in ("0.400", "source_only 0.300", "self_label", "pole is lost"):
        assert text in reason
    assert choose({name: stages[name] for name in ("source_only", "self_label")})[0] == "source_only"
    assert choose({"a": metrics(0.2, "lost"), "b": metrics(0.1, "lost")})[0] == "a"
    chosen, reason = choose({"a": metrics(0.2), "b": metrics(0.2)})
    assert chosen == "b"
    assert "highest" not in reason
    assert choose({"a": metrics(None), "b": metrics(0.2)})[0] == "b"


stages_with_scores = st.lists(
    st.tuples(st.none() | st.floats(0, 1), st.booleans()), min_size=1, max_size=len(STAGE_TITLES)
).map(lambda stages: dict(zip(STAGE_TITLES, stages, strict=False)))


@given(stages_with_scores, st.sampled_from([0.0, SAME_SCORE, 0.1]))
def test_the_last_stage_is_chosen_whose_score_is_no_clear_loss(
    stages: dict[str, tuple[float | None, bool]], tolerance: float
) -> None:
    chosen, reason = choose(
        {name: metrics(score, *["sky is lost"] * lost) for name, (score, lost) in stages.items()},
        tolerance=tolerance,
    )
    score, collapsed = stages[chosen]
    intact = any(not lost for _, lost in stages.values())
    assert not (collapsed and intact)
    others = {name: s for name, (s, lost) in stages.items() if s is not None and not (lost and intact)}
    if score is None:
        assert not others
        return
    assert score >= max(others.values()) - tolerance
    later = [s for name, s in others.items() if [*stages].index(name) > [*stages].index(chosen)]
    assert all(s < max(others.values()) - tolerance for s in later)
    # A network below the highest is not called the highest.
    assert ("the highest:" not in reason) or score == max(others.values())


def test_a_network_that_is_lower_by_no_more_than_the_seeds_differ_is_chosen() -> None:
    stages = {"source_only": metrics(0.517), "online": metrics(0.510)}
    chosen, reason = choose(stages)
    assert chosen == "online"
    for text in ("0.510", "source_only 0.517", "0.02"):
        assert text in reason
    assert choose(stages, tolerance=0.0)[0] == "source_only"
    assert choose({**stages, "online": metrics(0.49)})[0] == "source_only"


def both_scores(first: float, second: float | None) -> dict[str, Any]:
    return {"scores": {SCORE: first, SECOND_SCORE: second}}


@given(st.lists(st.tuples(st.floats(0.5, 0.54), st.none() | st.floats(0, 1)), min_size=1, max_size=5))
def test_no_stage_is_chosen_that_is_lower_than_an_earlier_one_in_both_scores(
    scores: list[tuple[float, float | None]],
) -> None:
    stages = dict(zip(STAGE_TITLES, scores, strict=False))
    chosen, reason = choose({name: both_scores(*pair) for name, pair in stages.items()}, STAGE_TITLES)
    place, highest = [*stages].index(chosen), max(first for first, _ in scores)

    def rejected(index: int) -> bool:
        first, second = scores[index]
        if first < highest - SAME_SCORE:
            return True
        return second is not None and any(
            a > first and b is not None and b > second for a, b in scores[:index] if a >= highest - SAME_SCORE
        )

    assert not rejected(place)
    later = range(place + 1, len(scores))
    assert all(rejected(index) for index in later)
    for index in later:
        if scores[index][0] >= highest - SAME_SCORE:
            assert STAGE_TITLES[[*stages][index]] in reason.partition("excluded (")[0]


def test_stages_that_get_worse_step_by_step_end_with_the_one_before() -> None:
    """The scores of the paper's stages on generated streets, whose mIoU falls from 53.1 to 49.3."""
    scores = [(0.533, 0.659), (0.529, 0.668), (0.525, 0.658), (0.522, 0.626), (0.5289, 0.646)]
    stages = {
        name: both_scores(*pair)
        for name, pair in zip(
            ("source_only", "warmup", "self_label", "distill_1", "distill_2"), scores, strict=True
        )
    }
    chosen, reason = choose(stages)
    assert chosen == "warmup"
    assert "self_label, distill_1, distill_2 are excluded" in reason
    assert reason.count("consistency") == 1


def test_the_last_stage_is_chosen_if_none_has_a_score() -> None:
    assert choose({"a": metrics(None), "b": {"miou": 3.0}})[0] == "b"


@given(stages_with_scores)
def test_the_reason_of_a_report_is_in_plain_words(stages: dict[str, tuple[float | None, bool]]) -> None:
    candidates = {
        name: {"scores": {SCORE: score}, "collapses": ["sky is lost"] * lost}
        for name, (score, lost) in stages.items()
    }
    _, reason = choose(candidates, STAGE_TITLES)
    assert "_" not in reason
    assert "inf" not in reason.replace(SCORE_IN_WORDS, "")
    assert (SCORE_IN_WORDS in reason) == any(
        f"{score:.3f}" in reason for score, _ in stages.values() if score is not None
    )
