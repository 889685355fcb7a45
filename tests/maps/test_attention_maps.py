"""`attention_maps`: the gate of the formula at each site, and nothing else changed."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from simam_inject import bypass, inject
from simam_inject.attention import ArgumentError
from simam_inject.errors import ModelError
from simam_inject.maps import attention_maps, difference_maps
from simam_inject.warmup import set_strength
from tests.warmup.networks import PATHS, Network, attended, forked, gate, images, plain


def test_the_mean_gate_of_a_picture_made_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU())
    model[0].weight.data = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    recipe = {"rules": [{"path": "0", "after": "output"}], "e_lambda": 0.25}
    inject(model, recipe, example_inputs=torch.rand(1, 1, 2, 2), verify=False)
    picture = torch.tensor([[0.0, 0.0], [0.0, 4.0]])[None, None]

    def by_hand(value, values):
        mean = sum(values) / 4
        variance = sum((v - mean) ** 2 for v in values) / 3
        return 1 / (1 + math.exp(-((value - mean) ** 2 / (4 * (variance + 0.25)) + 0.5)))

    one, three = [0, 0, 0, 4], [0, 0, 0, 12]
    found = attention_maps(model, picture)["0"]
    assert found.shape == (1, 1, 2, 2)
    expected = [(by_hand(a, one) + by_hand(b, three)) / 2 for a, b in zip(one, three, strict=True)]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[3] > expected[0] + 0.1
    single = attention_maps(model, picture, channel=1)["0"].flatten().tolist()
    assert single == pytest.approx([by_hand(b, three) for b in three], rel=1e-5)


def test_maps_are_by_path_in_the_order_of_execution_and_the_model_is_left():
    model, x = attended().train(), images(3)
    set_strength(model, 0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = attention_maps(model, x)
    assert list(found) == list(PATHS)
    assert model.training
    assert not any(module._forward_pre_hooks for name, module in model.named_modules() if name.endswith("simam"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    seen = []
    handle = model.blocks[0].first.simam.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    model.eval()(x)
    handle.remove()
    expected = gate(seen[0]).mean(1, keepdim=True)
    torch.testing.assert_close(found[PATHS[0]].double(), expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0.01


def test_inside_bypass_maps_are_those_of_the_stock_model_and_hooks_on_a_simam_run():
    model, x, seen = attended().eval(), images(3), []
    wanted = attention_maps(model, x)
    model.blocks[0].first.simam.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with bypass(model):
        found, changes = attention_maps(model, x), difference_maps(model, x)
        seen.clear()
        model(x)
    assert list(found) == list(changes) == list(PATHS)
    assert torch.equal(found[PATHS[0]], wanted[PATHS[0]])
    assert not torch.equal(found[PATHS[-1]], wanted[PATHS[-1]])
    assert not any(change.any() for change in changes.values())
    assert len(seen) == 1
    assert torch.equal(*seen[0])


def test_maps_of_channels_last_values():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 4, 4)
            self.norm = nn.LayerNorm(8)
            self.out = nn.Linear(8, 8)

        def forward(self, x):
            return self.out(self.norm(self.stem(x).permute(0, 2, 3, 1)))

    recipe = {"rules": [{"path": "norm", "after": "output"}], "e_lambda": 1e-3}
    x = images(2)
    model = inject(Block(), recipe, example_inputs=x, verify=False)
    with torch.no_grad():
        plain_norm = nn.functional.layer_norm(model.stem(x).permute(0, 2, 3, 1), (8,))
    expected = gate(plain_norm.movedim(-1, 1)).mean(1, keepdim=True)
    torch.testing.assert_close(attention_maps(model, x)["norm"], expected)


def test_a_shared_site_has_a_map_for_each_run():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(x)

    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = Head()

        def forward(self, x):
            return [self.head(x), self.head(x[..., ::2, ::2])]

    model = Pyramid()
    inject(model, "after Head.conv", example_inputs=images(1), verify=False)
    found = attention_maps(model, images(1))
    assert [tuple(value.shape[2:]) for value in found.values()] == [(16, 16), (8, 8)]
    assert list(found) == ["head.conv", "head.conv (run 2)"]


class Early(nn.Module):
    """Runs its second convolution below a threshold, which SimAM makes the difference for."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        nn.init.constant_(self.a.weight, 1.0)

    def forward(self, x):
        y = self.a(x)
        return self.b(y) if y.mean() < 1.2 else y


def test_a_site_that_runs_with_simam_only_has_no_difference_map():
    model = inject(Early(), "every-conv", example_inputs=torch.zeros(1, 3, 8, 8), verify=False)
    x = torch.full((1, 3, 8, 8), 0.5)
    assert list(attention_maps(model, x)) == ["a", "b"]
    with pytest.raises(ModelError, match="b has no map of this size without SimAM"):
        difference_maps(model, x)


def test_difference_maps_are_zero_at_strength_0_and_right_at_the_first_site():
    model, x = attended(), images(2)
    found = difference_maps(model, x)
    with torch.no_grad():
        stock = plain()
        value = stock.blocks[0].first(stock.norm(stock.stem(x)).relu())
    expected = (value * gate(value) - value).abs().mean(1, keepdim=True) / value.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(found[PATHS[0]], expected, rtol=1e-4, atol=1e-5)
    set_strength(model, 0.0)
    assert all(not value.any() for value in difference_maps(model, x).values())


@pytest.mark.parametrize("look", [attention_maps, difference_maps])
def test_a_forward_that_writes_to_its_input_gets_a_copy(look):
    class InPlace(Network):
        def forward(self, x):
            return super().forward(x.sub_(0.5).div_(0.1))

    x, model = images(2), attended()
    expected = look(model, (x - 0.5) / 0.1)
    model.__class__ = InPlace
    found = look(model, x)
    assert torch.equal(x, images(2))
    assert all(torch.equal(found[name], expected[name]) for name in PATHS)


def test_the_difference_is_that_of_simam_alone_in_a_network_with_noise():
    model, x = attended(), images(2)
    model.stem.register_forward_hook(lambda _module, _args, output: nn.functional.dropout(output, 0.5, True))
    state = torch.get_rng_state()
    assert all(value.any() for value in difference_maps(model, x).values())
    set_strength(model, 0.0)
    assert not any(value.any() for value in difference_maps(model, x).values())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_channel_that_is_not_there_a_plain_model_and_other_inputs_are_refused():
    with pytest.raises(ArgumentError, match="has channels 0 to 7; found 8"):
        attention_maps(attended(), images(1), channel=8)
    with pytest.raises(ModelError, match="no SimAM in this model"):
        attention_maps(plain(), images(1))
    with pytest.raises(ModelError, match=r"cannot be run on the example input \(1x2x16x16\)"):
        attention_maps(attended(), images(1)[:, :2, :16, :16])


def test_threads_that_share_a_model_get_their_own_maps():
    model, x = attended().eval(), images(2)
    alone = attention_maps(model, x)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: attention_maps(model, x), range(16)))
    for maps in found:
        assert maps.keys() == alone.keys()
        assert all(torch.equal(maps[name], alone[name]) for name in alone)


SHARED = {}
"""What the hook below uses: as a function that closed over the model, it would get the copy."""


def serve(_module, _args):
    """Run the model in another thread in the middle of a forward of this one."""
    if threading.get_ident() == SHARED["main"]:
        with ThreadPoolExecutor(1) as pool:
            SHARED["served"].append(pool.submit(SHARED["model"], images(2)).result())


@pytest.mark.parametrize("look", [attention_maps, difference_maps])
def test_another_thread_that_runs_the_model_meanwhile_gets_its_usual_output(look):
    model, x = attended().eval(), images(2)
    usual = model(x)
    SHARED.update(main=threading.get_ident(), served=[], model=model)
    model.stem.register_forward_pre_hook(serve)
    look(model, x)
    assert len(SHARED["served"]) == 1 + (look is difference_maps)
    assert all(torch.equal(output, usual) for output in SHARED["served"])


HOLD = {
    "closure": lambda extra: (extra, lambda held: held),
    "list": lambda extra: ([extra], lambda held: held[0]),
    "object": lambda extra: (Runs(extra), lambda held: held.run),
    "method": lambda extra: (extra.forward, lambda held: held),
}


class Runs:
    def __init__(self, run):
        self.run = run


@pytest.mark.parametrize("in_default", [False, True])
@pytest.mark.parametrize("name", HOLD)
def test_a_hook_that_runs_another_module_runs_the_copy_of_it(name, in_default):
    model = attended().train()
    model.extra = nn.BatchNorm2d(8)
    held, module_of = HOLD[name](model.extra)
    if in_default:
        model.stem.register_forward_hook(lambda _module, _args, output, held=held: output + 0 * module_of(held)(output))
    else:
        model.stem.register_forward_hook(lambda _module, _args, output: output + 0 * module_of(held)(output))
    assert list(attention_maps(model, images(2))) == list(PATHS)
    assert model.extra.num_batches_tracked == 0
    assert not model.extra.running_mean.any()


def test_wrapped_and_compiled_models_have_the_maps_of_what_is_in_them():
    model, x = attended(), images(2)
    expected = attention_maps(model, x)
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        found = attention_maps(wrapped, x)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_two_readers_of_one_value_have_two_maps():
    assert list(attention_maps(forked(), images(1))) == ["a before b", "a before c"]
