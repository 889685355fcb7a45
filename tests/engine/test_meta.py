"""Operations on tensors without data that the recorder answers itself: as torch would, or not at all."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from simam_inject.api import survey
from simam_inject.dataflow.meta import computed_at_once
from simam_inject.dataflow.twin import to_meta
from simam_inject.nested import tensors_in

X = torch.rand(2, 8, 4, 6)
TOKENS = torch.rand(2, 5, 8)
W, B, V = torch.rand(3, 8), torch.rand(3), torch.rand(8)
ACTIVATIONS = ["celu", "elu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "relu6", "selu"]
ANSWERED = {
    **{name: (getattr(F, name), (X,), {}) for name in [*ACTIVATIONS, "gelu", "softplus"]},
    "torch.relu": (torch.relu, (X,), {}),
    "relu of a parameter": (torch.Tensor.relu, (nn.Parameter(X),), {}),
    "tanh form": (F.gelu, (X,), {"approximate": "tanh"}),
    "alpha": (F.elu, (X, 1.0), {}),
    "sum": (torch.Tensor.add, (X, X), {}),
    "gate": (torch.Tensor.mul, (X, X[:, :, :1, :1].contiguous()), {}),
    "position": (torch.add, (X, X[0]), {}),
    "number": (torch.Tensor.div, (X, 2), {}),
    "half": (torch.Tensor.sub, (X.half(), X.half()), {}),
    "linear": (F.linear, (TOKENS, W, B), {}),
    "no bias": (F.linear, (TOKENS, W), {}),
    "bias by name": (F.linear, (TOKENS, W), {"bias": B}),
    "mean of a map": (F.adaptive_avg_pool2d, (X, 1), {}),
    "mean of a map without a batch": (F.adaptive_avg_pool2d, (X[0], (1, 1)), {}),
    "layer norm": (F.layer_norm, (TOKENS, (8,), V, V), {}),
    "layer norm of maps": (F.layer_norm, (X, [4, 6]), {}),
    "group norm": (F.group_norm, (X, 4), {"weight": V, "bias": V}),
}
LEFT_TO_TORCH = {
    "integers": (torch.relu, (torch.arange(3),), {}),
    "channels last": (F.gelu, (X.to(memory_format=torch.channels_last),), {}),
    "expanded": (torch.relu, (X[:, :1].expand(2, 8, 4, 6),), {}),
    "two dtypes": (torch.add, (X, X.half()), {}),
    "complex": (torch.mul, (X, 2j), {}),
    "larger": (torch.add, (X[:1], X), {}),
    "out": (torch.add, (X, X), {"out": torch.empty_like(X)}),
    "out of a number": (torch.mul, (X, 2.0), {"out": torch.empty_like(X)}),
    "in place by a number": (F.leaky_relu, (X.clone(), 0.2, 1), {}),
    "in place by a number as a keyword": (F.relu, (X.clone(),), {"inplace": 1}),
    "alpha by position": (torch.add, (X, X), {"alpha": torch.tensor(2)}),
    "pooling": (F.adaptive_avg_pool2d, (X, (2, 1)), {}),
    "vector": (F.linear, (V, W, B), {}),
}
WRONG = {
    "linear": (F.linear, (X, W, B), {}),
    "bias": (F.linear, (TOKENS, W, V), {}),
    "layer norm": (F.layer_norm, (X, (4, 5)), {}),
    "weight of a layer norm": (F.layer_norm, (X, (6,), V), {}),
    "group norm": (F.group_norm, (X, 3), {}),
    "weight of a group norm": (F.group_norm, (X, 4, B), {}),
    "one value": (F.group_norm, (X[:1, :, :1, :1], 8), {}),
    "sum": (torch.add, (X, TOKENS), {}),
}


def without_data(value):
    return to_meta(value) if isinstance(value, torch.Tensor) else value


def at_once(func, args, kwargs):
    args, kwargs = tuple(map(without_data, args)), {name: without_data(value) for name, value in kwargs.items()}
    return computed_at_once(func, args, kwargs, [tensor for _, tensor in tensors_in([*args, *kwargs.values()])])


@pytest.mark.parametrize("name", ANSWERED)
def test_an_answer_is_that_of_torch(name):
    func, args, kwargs = ANSWERED[name]
    with torch.no_grad():
        expected, found = func(*args, **kwargs), at_once(func, args, kwargs)
    assert found.is_meta
    assert (found.shape, found.dtype, found.stride()) == (expected.shape, expected.dtype, expected.stride())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_in_place(name):
    x = to_meta(X)
    assert computed_at_once(getattr(F, name), (x,), {"inplace": True}, [x]) is x
    assert x._version == 1


@pytest.mark.parametrize("name", LEFT_TO_TORCH)
def test_what_is_not_plain_is_left_to_torch(name):
    assert at_once(*LEFT_TO_TORCH[name]) is None


@pytest.mark.parametrize("name", WRONG)
def test_an_error_is_left_to_torch(name):
    func, args, kwargs = WRONG[name]
    with pytest.raises((RuntimeError, ValueError)):
        func(*args, **kwargs)
    assert at_once(func, args, kwargs) is None


@pytest.mark.parametrize("norm", [nn.LayerNorm([4, 8, 8]), nn.Sequential(nn.Flatten(2), nn.Linear(64, 64))])
def test_a_network_of_one_size_is_one(norm):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 4, 3, padding=1), norm

        def forward(self, x):
            return self.norm(self.a(x))

    site = survey(Net(), example_inputs=torch.rand(1, 3, 8, 8)).site_by_path["a"]
    assert (site.axes, site.axes_measured) == ("NCHW", False)


class Written(nn.Module):
    """The activation's result is read under the name of its input."""

    def __init__(self, activation):
        super().__init__()
        self.a, self.act, self.b = nn.Conv2d(3, 4, 3, padding=1), activation, nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        self.act(x)
        return x + y


@pytest.mark.parametrize("kind", [nn.Hardswish, nn.ReLU6, nn.LeakyReLU, nn.Mish])
def test_activations_that_write_into_their_input_are_seen_to_do_so(kind):
    sites = survey(Written(kind(inplace=True)), example_inputs=torch.rand(1, 3, 8, 8)).site_by_path
    assert sites["a"].obstacle is None
    assert sites["act"].obstacle.startswith("it modifies a tensor in place")
