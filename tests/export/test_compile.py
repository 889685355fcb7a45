"""torch.compile takes an injected model whole, in train and in eval mode."""

import pytest
import torch

from tests.export.networks import attended, image

RECIPES = ["after basicblock.conv2", "after basicblock", "before basicblock.residual", "after basicblock.relu[2]"]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_no_graph_break(recipe, training):
    model = attended(recipe).train(training)
    explained = torch._dynamo.explain(model)(image(2))
    assert explained.graph_count == 1
    assert explained.graph_break_count == 0


@pytest.mark.parametrize("training", [True, False])
def test_compiled_outputs_and_gradients_are_eager(training):
    model, twin = attended().train(training), attended().train(training)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    ours, theirs = compiled(image(2)), model(image(2))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for one, other in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_a_mode_change_compiles_anew_and_stays_whole():
    model = attended()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for training in (True, False):
        model.train(training)
        assert compiled(image(2)).shape == (2, 5)


@pytest.mark.long
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor(training, dynamic):
    model, twin = attended().train(training), attended().train(training)
    compiled = torch.compile(twin, fullgraph=True, dynamic=dynamic)
    for side in (32, 48):
        torch.testing.assert_close(compiled(image(2, side)), model(image(2, side)), rtol=1e-4, atol=1e-5)
