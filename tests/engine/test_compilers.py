"""torch.compile, torch.export, torch.jit.trace, functional_call: equal to eager, without a graph break."""

import copy

import pytest
import torch

from simam_inject import InjectError, SimAM, inject, injected
from tests.engine.blocks import HasFlag, HasHoles, HasLoop, HasOptional, Net, ReadsChild, TakesKeywordOnly
from tests.engine.networks import NETWORKS, image, twin
from tests.engine.oracle import distance, same_bits

X = torch.rand((2, 4, 8, 8), generator=torch.Generator().manual_seed(2))


def of_zoo(name, after):
    network = next(n for n in NETWORKS if n.name == name and n.rule.get("after") == after)
    return inject(network.build(), network.recipe, example_inputs=image(), verify=False), image()


def resnet18():
    return of_zoo("resnet18", "conv2")


def resnet50():
    return of_zoo("resnet50", "conv2")


def resnet50_blocks():
    return of_zoo("resnet50", "output")


def c2f():
    yolo = next(network for network in NETWORKS if network.name == "yolov8n").build()
    x = torch.rand((1, 64, 16, 16), generator=torch.Generator().manual_seed(1))
    rules = [{"block": "bottleneck", "after": "cv2"}, {"block": "c2f", "after": "output"}]
    return inject(yolo.model[4], {"rules": rules}, example_inputs=x), x


def guarded(block):
    def build():
        torch.manual_seed(3)
        return inject(block().eval(), f"after {block.__name__}.a", example_inputs=X), X

    build.__name__ = block.__name__
    return build


GUARDED = [guarded(block) for block in (HasFlag, HasHoles, HasLoop, HasOptional, ReadsChild, TakesKeywordOnly)]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def run(model, x):
    with torch.no_grad():
        return model(x)


SLOW = [pytest.param(resnet50, False, marks=pytest.mark.long)]
SLOW += [pytest.param(resnet50_blocks, training, marks=pytest.mark.long) for training in (False, True)]
QUICK = [(resnet50, True), *((build, training) for build in (c2f, *GUARDED) for training in (False, True))]


@pytest.mark.parametrize(("build", "training"), QUICK + SLOW, ids=lambda value: getattr(value, "__name__", str(value)))
def test_compile_full_graph(build, training):
    model, x = build()
    eager, model = twin(model).train(training), model.train(training)
    if isinstance(model, ReadsChild):
        eager.parts[0].p = model.parts[0].p = 0.5
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    outputs = []
    for run_once in (eager, compiled):
        torch.manual_seed(1)
        outputs.append(run_once(x))
    if isinstance(model, ReadsChild) and training:
        assert outputs[0].shape == outputs[1].shape  # a compiler draws its random numbers in its own order
        return
    assert distance(outputs[1], outputs[0]) < 1e-5
    outputs[0].square().mean().backward()
    outputs[1].square().mean().backward()
    for ours, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            assert distance(ours.grad, theirs.grad) < 1e-3


def test_compile_leaves_no_graph_break_and_one_graph():
    model, x = c2f()
    explained = torch._dynamo.explain(model)(x)
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


@pytest.mark.long
@pytest.mark.parametrize("build", [resnet50, c2f], ids=lambda build: build.__name__)
def test_compile_with_inductor(build):
    model, x = build()
    assert distance(run(torch.compile(model, fullgraph=True), x), run(model, x)) < 1e-5


def test_a_guard_speaks_under_compile_too():
    model, x = GUARDED[0]()
    compiled = torch.compile(model, backend="eager")
    assert same_bits(run(compiled, x), run(model, x))
    model.flag = True
    with pytest.raises(InjectError, match="flag"):
        run(compiled, x)


@pytest.mark.parametrize("build", [resnet50, resnet50_blocks, c2f, *GUARDED[:4]], ids=lambda build: build.__name__)
def test_export(build):
    model, x = build()
    program = torch.export.export(model, (x,))
    assert same_bits(run(program.module(), x), run(model, x)) or (
        distance(run(program.module(), x), run(model, x)) < 1e-6
    )
    assert sum("sigmoid" in str(node.target) for node in program.graph.nodes) >= len(injected(model))
    assert set(program.state_dict) == set(model.state_dict())


def test_export_with_a_dynamic_batch_and_size():
    model, x = resnet18()
    dims = {0: torch.export.Dim("batch", min=1, max=8), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(model, (x,), dynamic_shapes=(dims,))
    for other in (image(3, 64), image(1, 96)):
        assert distance(run(program.module(), other), run(model, other)) < 1e-6


@pytest.mark.parametrize("build", [resnet18, c2f], ids=lambda build: build.__name__)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_jit_trace(build):
    model, x = build()
    traced = torch.jit.trace(model, x)
    assert distance(run(traced, x), run(model, x)) < 1e-6


def test_functional_call_and_vmap():
    model, x = c2f()
    state = {name: tensor.detach() * 0.5 for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    halved = twin(model)
    halved.load_state_dict(state, strict=False)
    with torch.no_grad():
        found = torch.func.functional_call(model, state, (x,))
    assert same_bits(found, run(halved, x))
    stacked = torch.stack([x, x + 1])
    mapped = torch.func.vmap(lambda part: torch.func.functional_call(model, state, (part,)))(stacked)
    assert distance(mapped[1], run(halved, x + 1)) < 1e-5


def test_symbolic_trace_by_somebody_else():
    model, x = resnet18()
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert sum(getattr(node.target, "__name__", "") == "simam" for node in traced.graph.nodes) == 8
    assert same_bits(run(traced, x), run(model, x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_afterwards(dtype):
    model, x = resnet18()
    expected = run(model, x)
    other = twin(model).to(dtype)
    found = run(other, x.to(dtype))
    assert found.dtype == dtype
    assert torch.isfinite(found).all()
    assert distance(found, expected) < {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float64: 1e-4}[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_that_is_in_half_precision_already(dtype):
    torch.manual_seed(3)
    model = Net(HasLoop()).eval().to(dtype)
    x = image(size=16).to(dtype)
    inject(model, "after hasloop.a", example_inputs=x)
    assert injected(model)[0].dtype == str(dtype).removeprefix("torch.")
    assert run(model, x).dtype == dtype


def test_autocast():
    model, x = resnet18()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(model, x)
    assert distance(found, run(model, x)) < 0.1


def test_channels_last_afterwards_and_before():
    model, x = resnet18()
    expected = run(model, x)
    later = twin(model).to(memory_format=torch.channels_last)
    assert distance(run(later, x.contiguous(memory_format=torch.channels_last)), expected) < 1e-5
    network = next(n for n in NETWORKS if n.name == "resnet18" and n.rule["after"] == "conv2")
    earlier = network.build().to(memory_format=torch.channels_last)
    x_last = x.contiguous(memory_format=torch.channels_last)
    inject(earlier, network.recipe, example_inputs=x_last)
    assert distance(run(earlier, x_last), expected) < 1e-5
    formats = []
    earlier.layer1[0].bn2.register_forward_pre_hook(lambda module, args: formats.append(args[0]))
    run(earlier, x_last)
    assert formats[0].is_contiguous(memory_format=torch.channels_last)


def test_an_optimizer_keeps_its_parameters():
    torch.manual_seed(3)
    model = Net(HasLoop())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inject(model, "after hasloop.a", example_inputs=image(size=16))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(image(size=16)).square().mean().backward()
    optimizer.step()
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert changed == ["block.b" not in name for name, _ in model.named_parameters()]


def test_hooks_of_the_user_still_run():
    torch.manual_seed(3)
    model = Net(HasLoop()).eval()
    seen = []
    model.block.register_forward_hook(lambda module, args, output: seen.append("block"))
    model.block.a.register_forward_hook(lambda module, args, output: output + 1)
    model.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append("backward"))
    model.register_state_dict_post_hook(lambda module, state, prefix, metadata: seen.append("state"))
    model.register_load_state_dict_post_hook(lambda module, keys: seen.append("load"))
    plain = copy.deepcopy(model)
    inject(model, "after hasloop.a", example_inputs=image(size=16))
    attention = SimAM()
    plain.block.a.register_forward_hook(lambda module, args, output: attention(output))
    seen.clear()
    assert same_bits(run(model, image(size=16)), run(plain, image(size=16)))
    assert seen == ["block", "block"]
    seen.clear()
    model(image(size=16).requires_grad_()).sum().backward()
    model.load_state_dict(model.state_dict())
    assert seen == ["block", "backward", "state", "load"]


def test_data_parallel_replicas():
    model, x = c2f()
    replica = model._replicate_for_data_parallel()
    replica._modules.update(model._modules)
    assert same_bits(run(replica, x), run(model, x))
