"""`set_strength` and `Ramp`: exact at 0, equal steps to 1, resumable, copies follow."""

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from simam_inject import eject, injected
from simam_inject.attention import ArgumentError
from simam_inject.errors import ModelError
from simam_inject.warmup import Ramp, calibrate, set_strength
from tests.messages import says
from tests.warmup.networks import attended, backward, calibrated, images, plain


def strengths(model):
    return {site.strength for site in injected(model.module if isinstance(model, AveragedModel) else model)}


@pytest.mark.parametrize("training", [False, True])
def test_at_strength_0_outputs_gradients_and_statistics_are_those_of_the_plain_model(training):
    x = images()
    model, stock = calibrated().train(training), plain().train(training)
    live = backward(copy.deepcopy(model), x)[0]
    set_strength(model, 0.0)
    for one, other in zip(backward(model, x), backward(stock, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert (live - model(x)).abs().max() > 1e-3


def test_half_strength_is_half_way_at_each_site():
    model = calibrated()
    simam, x = model.blocks[0].first.simam, torch.randn(2, 8, 6, 6)
    full = simam(x)
    set_strength(model, 0.5)
    torch.testing.assert_close(simam(x), (x + full) / 2)
    assert strengths(model) == {0.5}


STRENGTHS, STEPS = (-0.1, 1.5, float("nan"), "half", None, True), (0, -1, 2.5, True, "3")
MISTAKES = [
    *((lambda model, value=value: set_strength(model, value), ArgumentError, "strength") for value in STRENGTHS),
    *(
        (lambda model, value=value: Ramp(model, steps=3, start=value), ArgumentError, "start must be")
        for value in STRENGTHS
    ),
    *(
        (lambda model, value=value: Ramp(model, steps=value), ArgumentError, "steps")
        for value in (0, -1, 2.5, True, "3")
    ),
    (lambda model: set_strength(plain(), 0.5), ModelError, "no SimAM in this model"),
    (lambda model: Ramp(plain(), model, steps=3), ModelError, "no SimAM in this model"),
    (lambda model: Ramp(model.state_dict(), model, steps=3), ModelError, says("nn.Module", "OrderedDict")),
]


@pytest.mark.parametrize(("call", "error", "message"), MISTAKES)
def test_a_mistake_is_refused_and_nothing_is_set(call, error, message):
    model = attended()
    with pytest.raises(error, match=message):
        call(model)
    assert strengths(model) == {1.0}


def test_a_ramp_goes_up_in_equal_steps_and_stays():
    model = calibrated()
    ramp = Ramp(model, steps=4, start=0.2)
    assert strengths(model) == {0.2}
    seen = [ramp.step() for _ in range(6)]
    assert seen == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    assert strengths(model) == {1.0}
    assert ramp.finished


def test_copies_follow():
    model = calibrated()
    average, twin = AveragedModel(model), copy.deepcopy(model)
    ramp = Ramp(model, average, twin, steps=2)
    ramp.step()
    assert strengths(model) == strengths(average) == strengths(twin) == {0.5}


@pytest.mark.parametrize("make", [ModelEmaV2, ModelEmaV3, AveragedModel])
def test_loops_of_timm_and_torchvision(make):
    """Their EMA classes, and the three lines of docs/training.md around the optimizer's step."""
    model = attended()
    set_strength(model, 0.0)
    calibrate(model, [(images(8), torch.zeros(8))])
    ema, optimizer = make(model), torch.optim.SGD(model.parameters(), 0.01)
    ramp = Ramp(model, ema, steps=4)
    update = getattr(ema, "update_parameters", None) or ema.update
    for step in range(3):
        loss = model.train()(images(8, seed=step)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ramp.step()
        update(model)
    gains = {site.gain for site in injected(model)}
    assert min(gains) > 1.1
    assert {(site.strength, site.gain) for site in injected(ema.module)} == {(0.75, gain) for gain in gains}


def test_wrapped_and_compiled_models_are_set_through():
    model = calibrated()
    Ramp(nn.DataParallel(model), steps=4).step()
    assert strengths(model) == {0.25}
    set_strength(torch.compile(model, backend="eager"), 0.75)
    assert strengths(model) == {0.75}


def train(model, ramp, optimizer, steps):
    for step in range(steps):
        loss = model.train()(images(8, seed=step)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ramp.step()


def run_of(model, steps, state=None):
    ramp, optimizer = Ramp(model, steps=6), torch.optim.SGD(model.parameters(), 0.01)
    if state is not None:
        ramp.load_state_dict(state)
    train(model, ramp, optimizer, steps)
    return ramp


def test_a_resumed_ramp_goes_on_where_it_was(tmp_path):
    whole = calibrated()
    ramp = run_of(whole, 3)
    state = json.loads(json.dumps(ramp.state_dict()))
    resumed = pickle.loads(pickle.dumps(whole))
    assert strengths(resumed) == {0.5}
    other = run_of(resumed, 2, state)
    train(whole, ramp, torch.optim.SGD(whole.parameters(), 0.01), 2)
    assert other.strength == ramp.strength == pytest.approx(5 / 6)
    for one, both in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(one, both, rtol=0, atol=0)


def test_steps_may_be_a_number_of_numpy():
    ramp = Ramp(calibrated(), steps=np.int64(4))
    ramp.step()
    assert json.loads(json.dumps(ramp.state_dict())) == {"steps": 4, "start": 0.0, "done": 1}


@pytest.mark.parametrize(
    "state", [None, {}, {"steps": 3, "start": 0.0, "done": -1}, {"steps": 0, "start": 0.0, "done": 0}]
)
def test_another_state_is_refused(state):
    model = calibrated()
    ramp = Ramp(model, steps=4)
    ramp.step()
    with pytest.raises(ArgumentError):
        ramp.load_state_dict(state)
    assert ramp.strength == 0.25
    assert strengths(model) == {0.25}


@pytest.mark.parametrize(
    "change",
    [Ramp.step, lambda ramp: ramp.load_state_dict({"steps": 10, "start": 0.5, "done": 9})],
    ids=["step", "load"],
)
def test_nothing_is_set_if_one_of_the_models_was_ejected(change):
    model, other = calibrated(), calibrated()
    ramp = Ramp(model, other, steps=4)
    eject(other)
    with pytest.raises(ModelError, match="no SimAM"):
        change(ramp)
    assert (strengths(model), ramp.state_dict()) == ({0.0}, {"steps": 4, "start": 0.0, "done": 0})


def test_a_step_of_a_finished_ramp_sets_a_model_that_was_injected_again():
    model = calibrated()
    ramp = Ramp(model, steps=1)
    ramp.step()
    set_strength(model, 0.0)
    assert {ramp.step()} == strengths(model) == {1.0}
    assert ramp.state_dict()["done"] == 1


def test_a_ramp_without_gains_warns_and_one_with_gains_does_not():
    with pytest.warns(UserWarning, match=r"without gains.*calibrate\(model, batches\)"):
        Ramp(attended(), steps=3)
    with pytest.warns(UserWarning, match="before copies are made"):
        Ramp(calibrated(), AveragedModel(attended()), steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Ramp(calibrated(), steps=3)


def test_nothing_is_set_if_the_warning_is_an_error():
    model = attended()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="without gains"):
            Ramp(model, steps=3)
    assert strengths(model) == {1.0}


def test_nothing_is_set_if_one_of_the_models_has_no_simam():
    model = attended()
    with pytest.raises(ModelError, match="no SimAM"):
        Ramp(model, torch.nn.Conv2d(3, 3, 1), steps=3)
    assert strengths(model) == {1.0}
