"""What an injected network costs beside SimAM itself, in numbers that do not depend on the machine."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torchvision.models import resnet18

from benchmarks.tax import by_hand
from simam_inject import eject, inject

RECIPE = "after basicblock"
SITES = 8


@pytest.fixture(scope="module")
def networks():
    """One network with SimAM by this engine, and one whose blocks call their own SimAM."""
    torch.manual_seed(0)
    plain = resnet18().eval()
    return inject(copy.deepcopy(plain), RECIPE, verify=False), by_hand(plain, "BasicBlock")


def hooks(model):
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def graphs(model):
    """How often a forward compiles, and the operations of its graphs."""
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        for _ in range(3):
            compiled(torch.ones(2, 3, 32, 32))
    return counter.frame_count, counter.op_count


def test_a_site_costs_one_hook_and_a_network_one_more(networks):
    injected, hand = networks
    assert (hooks(injected), hooks(hand)) == (SITES + 1, 0)
    assert hooks(eject(copy.deepcopy(injected))) == 0


def test_compiled_it_is_the_graph_of_the_network_by_hand(networks):
    injected, hand = networks
    assert graphs(injected) == graphs(hand)
    assert graphs(injected)[0] == 1
    doubled = inject(copy.deepcopy(hand), RECIPE, verify=False)
    assert graphs(doubled)[1] > graphs(hand)[1]
