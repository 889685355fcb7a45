"""The invariants of the design, checked on one network and one recipe."""

import copy
import pickle

import torch
from torch.nn.utils.parametrize import is_parametrized

from simam_inject import SimAM, bypass, eject, injected, plan, verify
from tests.oracle import same_bits
from tests.snapshot import snapshot

SEED = 3


def run(model, x, *, training=False):
    """Output of one forward from a fixed random state; modes and buffers are put back."""
    state = copy.deepcopy(model.state_dict())
    modes = {module: module.training for module in model.modules()}
    torch.manual_seed(SEED)
    for module in modes:
        module.training = training
    with torch.no_grad():
        found = model(x)
    model.load_state_dict(state)
    for module, mode in modes.items():
        module.training = mode
    return found


def unchanging(module, args, output):
    return output


def disturb(model):
    """Put the model into a state that careless inspection would lose: mixed modes, a hook, frozen parts, gradients."""
    model.train()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.norm.register_forward_hook(unchanging)


def check(design, recipe):
    """All invariants; returns the number of insertions."""
    model, x, wide = design.build(), design.inputs(), design.inputs(second=True)
    disturb(model)
    plain = {size: run(model, size) for size in (x, wide)}
    trained = run(model, x, training=True)
    keys, modules = list(model.state_dict()), list(model.named_modules())
    classes = [type(module) for _, module in modules]

    before = snapshot(model)
    planned = plan(model, recipe, example_inputs=x)
    assert snapshot(model) == before  # 3
    assert all(skip.reason for skip in planned.skips)  # 5
    planned.apply()
    assert {(i.path, i.reader) for i in injected(model)} == {(i.path, i.reader) for i in planned.insertions}
    assert sum(isinstance(module, SimAM) for module in model.modules()) == len(planned.insertions)
    if planned.insertions:
        check_injected(model, x, wide, plain, trained)
    assert list(model.state_dict()) == keys  # 1
    twin = design.build()
    model.load_state_dict(twin.state_dict(), strict=True)
    twin.load_state_dict(model.state_dict(), strict=True)

    eject(model)  # 2
    assert list(model.named_modules()) == modules
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == keys
    assert same_bits(run(model, x), plain[x])
    assert same_bits(run(model, x, training=True), trained)
    return len(planned.insertions)


def reaches_simam(model, x):
    ran = []
    handles = [m.register_forward_hook(lambda *_: ran.append(1)) for m in model.modules() if isinstance(m, SimAM)]
    run(model, x)
    for handle in handles:
        handle.remove()
    return bool(ran)


def check_injected(model, x, wide, plain, trained):
    reached = reaches_simam(model, wide)
    before = snapshot(model)
    for size in (x, wide):  # at a second size too: nothing is baked in
        found = verify(model, example_inputs=size)
        if size is x or reached:  # else no SimAM runs at that size, which verification may tell
            assert found.ok, str(found)
    assert snapshot(model) == before
    with bypass(model):
        for size, expected in plain.items():
            assert same_bits(run(model, size), expected)
        assert same_bits(run(model, x, training=True), trained)
    live = run(model, x)
    assert not same_bits(live, plain[x])  # zero effect is an error
    twins = [copy.deepcopy(model)]
    if not any(is_parametrized(module) for module in model.modules()):  # which torch refuses to pickle
        twins.append(pickle.loads(pickle.dumps(model)))
    for twin in twins:
        assert same_bits(run(twin, x), live)
        assert [i.path for i in injected(twin)] == [i.path for i in injected(model)]
        eject(twin)
        assert same_bits(run(twin, x), plain[x])
