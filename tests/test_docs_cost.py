"""The passes of each training step, from which docs/cost.py estimates hours, are those of the methods."""

from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from cpsl.app.config import Config
from cpsl.app.stages import trained_stages
from cpsl.methods import AdversarialWarmup
from training_steps import batches, build, network

spec = spec_from_file_location("cost", Path(__file__).parents[1] / "docs" / "cost.py")
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
    with FlopCounterMode(display=False) as counter:
        for loss in method.losses(source, target):
            loss.backward()
    passes = cost.passes(config, stage.partition(" ")[0])
    images, crop, whole = len(target.weak), target.weak.shape[2:], target.whole.shape[2:]
    model = network().eval().to("meta")
    expected = passes.crop * cost.operations(model, tuple(crop))
    expected += passes.whole * cost.operations(model, tuple(whole))
    # The first layer has no gradient of its input; the discriminator and the prototypes cost little.
    assert counter.get_total_flops() == pytest.approx(images * expected, rel=0.1)


def test_the_page_has_the_hours_that_the_script_prints() -> None:
    config, model = cost.read("gta5_to_cityscapes")
    total = sum(
        config.settings_of(stage).iterations * cost.step_operations(model, config, stage)
        for stage in trained_stages(config)
    )
    cells = " | ".join(cost.hours(total, peak) for peak in cost.PEAKS.values())
    page = (Path(cost.__file__).parent / "recipes.md").read_text(encoding="utf-8")
    assert f"| `gta5_to_cityscapes` | {cells} |" in page


def test_hours_are_between_those_of_both_utilizations() -> None:
    low, high = cost.hours(0.4 * 3600 * 1e15, 1e12).split(" to ")
    assert (low, high) == ("1000", "4000")
    assert cost.hours(0.4 * 3600 * 1e12, 1e12) == "1.0 to 4.0"
