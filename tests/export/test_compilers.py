"""torch.compile, torch.func, torch.fx: an injected model is taken whole, and computes what eager does."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from simam_inject import bypass, eject, inject
from tests.export.networks import Doubling, attended, doubling, image
from tests.oracle import distance, hooked

RECIPES = ["after basicblock.conv2", "after basicblock", "before basicblock.residual", "before basicblock.bn2"]


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def run(model, x):
    with torch.no_grad():
        return model(x)


def whole(model, backend="eager", **options):
    """Compiled without a graph break, or an error."""
    return torch.compile(model, fullgraph=True, backend=backend, **options)


@pytest.mark.parametrize(
    ("recipe", "training"), [(RECIPES[0], True), (None, True), *((recipe, False) for recipe in RECIPES[1:])]
)
def test_no_graph_break_and_equal_to_eager(recipe, training):
    model = (doubling() if recipe is None else attended(recipe)).train(training)
    twin = copy.deepcopy(model)
    explained = torch._dynamo.explain(copy.deepcopy(model))(image(2))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    ours = whole(twin)(image(2))
    assert distance(ours, model(image(2))) < 1e-5
    with bypass(model):
        assert distance(ours, model(image(2))) > 1e-3


def test_only_the_output_of_the_model_itself_is_a_second_graph():
    x = torch.rand(1, 3, 32, 32)
    for place, graphs in (("output", 2), ("tail", 1)):
        model = inject(Doubling(), {"rules": [{"block": "Doubling", "after": place}]}, example_inputs=x, verify=False)
        counter = CompileCounter()
        assert distance(run(whole(model, counter), x), run(model, x)) < 1e-5
        assert counter.frame_count == graphs


@pytest.mark.parametrize("build", [attended, doubling])
def test_outputs_and_gradients_are_those_of_eager(build):
    model, twin = build().train(), build().train()
    ours, theirs = whole(twin, "aot_eager")(image(2)), model(image(2))
    assert distance(ours, theirs) < 1e-5
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for one, other in zip(twin.parameters(), model.parameters(), strict=True):
        assert distance(one.grad, other.grad) < 1e-3 or other.grad.norm() < 1e-5


@pytest.mark.parametrize("build", [attended, doubling])
def test_other_sizes_and_modes(build):
    model, twin = build(), build()
    compiled = whole(twin, dynamic=True)
    for training in (True, False):
        model.train(training), twin.train(training)
        for batch, side in ((2, 32), (3, 48), (2, 40)):
            assert distance(run(compiled, image(batch, side)), run(model, image(batch, side))) < 1e-5


def test_a_flag_that_changes_after_compiling_is_followed():
    class Flagged(Doubling):
        flag = False

        def forward(self, x):
            y = self.stem(x) * 2.0
            if self.flag:
                y = y + 1.0
            return self.tail(y) + y.mean()

    torch.manual_seed(0)
    model = inject(Flagged(), {"rules": [{"block": "Flagged", "after": "mul"}]}, example_inputs=image(), verify=False)
    compiled = torch.compile(model, backend="eager")
    first = run(compiled, image())
    model.flag = True
    assert distance(run(compiled, image()), run(model, image())) < 1e-6
    assert distance(run(model, image()), first) > 1e-2


@pytest.mark.long
@pytest.mark.parametrize("build", [attended, doubling])
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor_is_equal_to_eager_at_two_sizes(build, dynamic):
    model, twin = build(), build()
    compiled = torch.compile(twin, fullgraph=True, dynamic=dynamic)
    for side in (32, 48):
        assert distance(run(compiled, image(2, side)), run(model, image(2, side))) < 1e-4


def test_inductor_gives_the_formula():
    model = attended().eval()
    ours = run(torch.compile(copy.deepcopy(model), fullgraph=True), image())
    with hooked(eject(copy.deepcopy(model)), ["blocks.0.conv2", "blocks.1.conv2"], 1e-4) as oracle:
        assert distance(ours, run(oracle, image())) < 1e-4
    assert distance(ours, run(eject(model), image())) > 1e-3


def test_functional_call_and_vmap():
    model = attended().eval()
    state = {name: tensor.detach() * 0.5 for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    halved = copy.deepcopy(model)
    halved.load_state_dict(state, strict=False)
    assert distance(torch.func.functional_call(model, state, (image(),)), run(halved, image())) < 1e-6
    stacked = torch.stack([image(), image() + 1])
    mapped = torch.func.vmap(lambda part: torch.func.functional_call(model, state, (part,)))(stacked)
    assert distance(mapped[1], run(halved, image() + 1)) < 1e-5
    assert distance(run(halved, image()), run(eject(halved), image())) > 1e-4


@pytest.mark.parametrize("build", [attended, lambda: nn.Sequential(doubling())])
def test_symbolic_trace_by_somebody_else(build):
    """`torch.fx` reads the forward of a root from its class: one that holds SimAM is traced inside another module."""
    model = build().eval()
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert distance(run(traced, image()), run(model, image())) < 1e-6
    for module in model.modules():
        eject(module)
    assert distance(run(traced, image()), run(model, image())) > 1e-3
