"""SimAM under everything that watches or transforms PyTorch: fx, functorch, checkpointing, fake tensors, modes."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from simam_inject.attention import SimAM, simam
from tests.attention.truth import distance, truth


class Net(nn.Module):
    """Uses the module and the function."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.attention = SimAM(0.1)

    def forward(self, x):
        return simam(self.attention(self.conv(x)), e_lambda=0.2)


def test_anyones_symbolic_trace_records_one_call_each():
    net, x = Net(), torch.randn(2, 3, 8, 8)
    traced = torch.fx.symbolic_trace(net)
    calls = [node for node in traced.graph.nodes if node.target is simam]
    assert [node.args[1:] for node in calls] == [(0.1,), (0.2,)]
    for twin in (traced, pickle.loads(pickle.dumps(traced)), copy.deepcopy(traced)):
        assert torch.equal(twin(x), net(x))
        assert torch.equal(twin(x[:1, :, :5]), net(x[:1, :, :5]))


def test_a_bypassed_module_traces_to_nothing():
    net = Net()
    net.attention.bypassed = True
    assert [node.target for node in torch.fx.symbolic_trace(net).graph.nodes].count(simam) == 1


def test_channels_last_layout_is_traced_too():
    traced = torch.fx.symbolic_trace(nn.Sequential(SimAM(channel_dim=-1)))
    x = torch.randn(2, 4, 4, 3)
    assert torch.equal(traced(x), simam(x, channel_dim=-1))


def test_make_fx_sees_plain_operations():
    x = torch.randn(2, 3, 4, 4)
    graph = make_fx(SimAM())(x).graph
    names = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert names
    assert all(name.startswith("aten.") and not name.endswith((".out", "_.Tensor")) for name in names)


def test_functional_call_and_functional_gradients():
    net, x = Net(), torch.randn(2, 3, 6, 6)
    parameters = {name: value.detach().clone() for name, value in net.named_parameters()}
    assert torch.equal(torch.func.functional_call(net, parameters, (x,)), net(x))

    def loss(weights):
        return torch.func.functional_call(net, weights, (x,)).pow(2).sum()

    net(x).pow(2).sum().backward()
    found = torch.func.grad(loss)(parameters)
    for name, value in net.named_parameters():
        torch.testing.assert_close(found[name], value.grad)


def test_vmap_is_a_loop():
    x = torch.randn(4, 2, 3, 5, 5)
    torch.testing.assert_close(torch.vmap(simam)(x), torch.stack([simam(part) for part in x]))
    per_sample = torch.vmap(torch.func.grad(lambda t: simam(t).pow(2).sum()))(x)
    leaf = x.clone().requires_grad_()
    simam(leaf.flatten(0, 1)).pow(2).sum().backward()
    torch.testing.assert_close(per_sample, leaf.grad)


def test_forward_mode_agrees_with_reverse_mode():
    x, tangent = torch.randn(2, 2, 3, 3, dtype=torch.float64).unbind(0)
    x, tangent = x[None], tangent[None]
    jacobian = torch.func.jacrev(simam)(x)
    expected = torch.einsum("abcdefgh,efgh->abcd", jacobian, tangent)
    torch.testing.assert_close(torch.func.jvp(simam, (x,), (tangent,))[1], expected)
    with forward_ad.dual_level():
        dual = simam(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)
    assert torch.autograd.gradcheck(simam, x.requires_grad_(), check_forward_ad=True)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant):
    net, x = Net(), torch.randn(2, 3, 6, 6, requires_grad=True)
    expected = torch.autograd.grad(net(x).pow(2).sum(), x)[0]
    checkpoint(net, x, use_reentrant=reentrant).pow(2).sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("grad", [False, True])
def test_fake_and_meta_tensors_give_shapes(grad):
    with FakeTensorMode() as mode:
        x = torch.empty(2, 3, 4, 4, dtype=torch.float16, requires_grad=grad)
        y = simam(x)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        if grad:
            y.sum().backward()
            assert x.grad.shape == x.shape
    outside = simam(mode.from_tensor(torch.empty(2, 3, 4, 4)))
    assert outside.shape == (2, 3, 4, 4)
    y = simam(torch.empty(2, 3, 4, 4, device="meta", requires_grad=grad))
    assert (y.shape, y.device.type) == ((2, 3, 4, 4), "meta")
    if grad:
        y.sum().backward()


def test_counting_modes_do_not_disturb():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with FlopCounterMode(display=False):
        y = simam(x)
        y.sum().backward()
    assert distance(x.grad, truth(x, torch.ones_like(x))[1]) < 1e-6


MIX = {"strength": 0.3, "gain": 1.7}


def test_strength_and_gain_under_transforms():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    y, dx = truth(x, torch.ones_like(x), 0.1, **MIX)
    module = SimAM(0.1)
    module.strength, module.gain = MIX["strength"], MIX["gain"]
    assert distance(torch.vmap(module)(x[None])[0], y) < 1e-12
    assert distance(torch.func.grad(lambda t: module(t).sum())(x), dx) < 1e-12
    assert torch.autograd.gradcheck(module, x[:1].requires_grad_(), check_forward_ad=True)
    traced = torch.fx.symbolic_trace(nn.Sequential(module))
    assert distance(traced(x), y) < 1e-12
    calls = [node.kwargs for node in traced.graph.nodes if node.target is simam]
    assert calls == [{"channel_dim": 1, **MIX}]
    jacobian = torch.autograd.functional.jacobian(module, x[:1].detach(), vectorize=True)
    assert distance(jacobian, torch.func.jacrev(module)(x[:1].detach())) < 1e-12
    module.strength = 0.0
    assert torch.equal(torch.vmap(module)(x), x)


class Tagged(torch.Tensor):
    """A tensor subclass with the usual behaviour."""


def test_tensor_subclasses_stay_what_they_are():
    x = torch.randn(2, 3, 4, 4)
    y = simam(x.as_subclass(Tagged))
    assert type(y) is Tagged
    assert distance(torch.Tensor(y), simam(x)) < 1e-6
    assert type(simam(nn.Parameter(x))) is torch.Tensor


def test_a_second_backward_of_one_forward_agrees():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    y = simam(x)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y.sum(), x)[0])


@pytest.mark.parametrize(
    ("derive", "function"),
    [
        (torch.autograd.functional.jacobian, lambda t: simam(t, 0.1)),
        (torch.autograd.functional.hessian, lambda t: simam(t, 0.1).pow(2).sum()),
    ],
)
def test_many_gradients_at_once(derive, function):
    x = torch.randn(1, 2, 3, 3, dtype=torch.double)
    torch.testing.assert_close(derive(function, x, vectorize=True), derive(function, x))
