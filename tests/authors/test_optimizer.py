import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cpsl.authors import RepeatedSGD


@given(
    steps=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    momentum=st.floats(0, 0.99),
    decay=st.floats(0, 0.1),
    seed=st.integers(0, 1000),
)
def test_each_group_takes_its_number_of_steps(
    steps: list[int], momentum: float, decay: float, seed: int
) -> None:
    torch.manual_seed(seed)
    weights = [nn.Parameter(torch.randn(3)) for _ in steps]
    alone = copy.deepcopy(weights)
    groups = [{"params": [w], "steps": n} for w, n in zip(weights, steps, strict=True)]
    together = RepeatedSGD(groups, 0.1, momentum, decay)
    apart = [torch.optim.SGD([w], 0.1, momentum, weight_decay=decay) for w in alone]
    for _ in range(3):
        for mine, theirs in zip(weights, alone, strict=True):
            mine.grad = torch.randn(3)
            theirs.grad = mine.grad.clone()
        together.step()
        for optimizer, count in zip(apart, steps, strict=True):
            for _ in range(count):
                optimizer.step()
    torch.testing.assert_close(weights, alone, rtol=0, atol=0)
    assert [group["steps"] for group in together.param_groups] == steps


def test_without_steps_the_optimizer_is_sgd_with_a_restorable_state() -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizer, sgd = RepeatedSGD([weights[0]], 0.1, 0.9), torch.optim.SGD([weights[1]], 0.1, 0.9)
    restored = RepeatedSGD([weights[2]], 0.1, 0.9)

    def step(*optimizers: torch.optim.Optimizer) -> None:
        for weight in weights:
            weight.grad = torch.ones(2)
        for each in optimizers:
            each.step()

    step(optimizer, sgd)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    weights[2].data.copy_(weights[0].data)
    step(optimizer, sgd, restored)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
