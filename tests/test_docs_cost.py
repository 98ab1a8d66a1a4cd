"""Hours that docs/cost.py estimates: the passes are those of the methods, the pages have its figures."""

import re
from dataclasses import replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from cpsl.app.config import Config
from cpsl.methods import AdversarialWarmup
from training_steps import batches, build, network

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "recipes.md").read_text(encoding="utf-8")

spec = spec_from_file_location("cost", DOCS / "cost.py")
assert spec is not None
assert spec.loader is not None
cost: Any = module_from_spec(spec)
spec.loader.exec_module(cost)

STAGES = {
    "source_only": ("source_only", {}),
    "warmup": ("warmup", {}),
    "self_label": ("self_labeling", {}),
    "distill_1": ("distillation", {}),
    "online": ("online", {}),
    "online without masks": ("online", {"masked_weight": 0.0}),
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_operations_of_a_step_are_those_of_its_passes(stage: str) -> None:
    name, options = STAGES[stage]
    config = Config()
    if options:
        config = replace(config, online=replace(config.online, masked_weight=0.0))
    if stage == "source_only":
        method: Any = AdversarialWarmup(network(), None, adversarial_weight=0.0)
        source, target = batches("warmup")
    else:
        method = build(name, **options)
        source, target = batches(name)
    with FlopCounterMode(display=False) as counter, cost.Calls() as calls:
        for loss in method.losses(source, target):
            loss.backward()
    passes = cost.passes(config, stage.partition(" ")[0])
    images, crop, whole = len(target.weak), target.weak.shape[2:], target.whole.shape[2:]
    model = network().eval().to("meta")
    expected = passes.crop * cost.operations(model, tuple(crop))
    expected += passes.whole * cost.operations(model, tuple(whole))
    # The first layer has no gradient of its input; the discriminator and the prototypes cost little.
    assert counter.get_total_flops() == pytest.approx(images * expected, rel=0.1)
    # The calls of losses, mixing and clustering are not counted.
    config = replace(config, views=replace(config.views, crop=tuple(crop), full_size=tuple(whole)))
    assert 0 < cost.step(model, config, stage.partition(" ")[0]).calls < calls.count


@cache
def hours_of(recipe: str) -> dict[str, dict[str, str]]:
    """Returns the hours that the script prints for a recipe, by stage and GPU."""
    return {row[1]: dict(zip(cost.PEAKS, row[5:], strict=True)) for row in cost.rows(recipe)}


def test_the_page_names_the_gpus_and_their_peaks() -> None:
    assert " | ".join(f"{gpu}, {peak / 1e12:g} TFLOPS" for gpu, peak in cost.PEAKS.items()) in PAGE


@pytest.mark.parametrize("recipe", cost.RECIPES)
def test_the_page_has_the_hours_that_the_script_prints(recipe: str) -> None:
    if recipe == "online_mit_b5":
        pytest.importorskip("transformers", reason="extra networks")
    title = f"`{recipe}`" if recipe else "no recipe, at the crops of the paper"
    title += f", for images of {'×'.join(map(str, cost.IMAGES))}" * (recipe == "gpu")
    hours = hours_of(recipe)["total"]
    assert f"| {title} | {' | '.join(hours.values())} |" in PAGE
    estimated = rf"^\| {title.partition(',')[0]}: [^|]*\|[^|]*\| (.+?) h, (.+?) \|"
    stated = re.search(estimated, PAGE, re.M)
    assert stated is not None
    assert stated[1] == hours[stated[2]]


def test_other_statements_about_hours_are_those_of_the_script() -> None:
    hours = hours_of("gta5_to_cityscapes")
    assert f"the estimate for self-labeling on a V100 is {hours['self_label']['V100 SXM2']}." in PAGE
    reproduce = (DOCS / "reproduce.md").read_text(encoding="utf-8")
    assert f"estimates {hours['total']['A100']} hours for all stages on one A100" in reproduce


def test_calls_that_decide_are_in_the_page() -> None:
    pytest.importorskip("transformers", reason="extra networks")
    [_, online, _] = cost.rows("online_mit_b5")
    assert f"{online[4]} calls per step" in PAGE
    assert len(set(online[5:])) == 1
    least, most = (round(seconds * 1e6) for seconds in reversed(cost.CALL_SECONDS))
    assert f"We assume {least} and {most} µs per call" in PAGE


def test_hours_are_between_those_of_both_assumptions() -> None:
    def hours(operations: float, calls: int) -> str:
        return str(cost.hours([(1000, cost.Step(operations, calls))], 1e12))

    assert hours(0.4 * 3600 * 1e12, 0) == "1000 to 4000"
    assert hours(0.4 * 3.6 * 1e12, 0) == "1.0 to 4.0"
    # The processor takes 10 to 30 microseconds per call, which a GPU cannot hide.
    assert hours(0.4 * 3.6 * 1e12, 720_000) == "2.0 to 6.0"
    assert hours(0.4 * 3.6 * 1e12, 720) == "1.0 to 4.0"
