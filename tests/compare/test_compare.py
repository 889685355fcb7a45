"""`compare` in Python: what is equal between the variants, and what becomes of runs that go wrong."""

import itertools
import math
import random
import re
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from simam_inject import inject
from simam_inject.compare import compare
from simam_inject.compare.cells import AGAIN_OFFSET
from simam_inject.errors import CompareError, ModelError, NoMatchError, RecipeError
from simam_inject.recipe import load_recipe
from tests.compare.networks import RECIPE, attended_by, attention_of, make_model, noisy
from tests.messages import says

ARMS = ["plain", "plain again", "simam", "se"]


def test_variants_of_a_seed_share_weights_and_data_order_and_differ_in_the_attention():
    runs = {}

    def train(model, seed, report):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        draws = (torch.rand(2).tolist(), random.random(), np.random.random())
        runs.setdefault(seed % AGAIN_OFFSET, []).append((attended_by(model), seed, state, draws))
        return 1.0

    comparison = compare(make_model, [RECIPE], train, ["se"], seeds=2)
    assert [(cell.variant, cell.seed) for cell in comparison.cells] == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    for seed, (plain, again, simam, se) in runs.items():
        assert [run[0] for run in (plain, again, simam, se)] == ["", "", "SimAM", "SEModule"]
        assert [run[1] for run in (plain, again, simam, se)] == [seed, seed + AGAIN_OFFSET, seed, seed]
        for other in (again, simam, se):
            assert all(torch.equal(value, other[2][name]) for name, value in plain[2].items())
        assert plain[3] == simam[3] == se[3] != again[3]
        assert set(se[2]) > set(plain[2]) == set(simam[2])
    assert not torch.equal(runs[0][0][2]["0.weight"], runs[1][0][2]["0.weight"])


def test_optuna_prints_nothing_and_keeps_its_verbosity():
    """In a process of its own: optuna writes to the stderr that was there when it was imported."""
    script = (
        "import optuna, torch\n"
        "from simam_inject.compare import compare\n"
        "compare(lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), ['after conv2d'], lambda *_: 1.0, seeds=1)\n"
        "assert optuna.logging.get_verbosity() == optuna.logging.INFO\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, "study" in done.stderr) == (0, False), done.stderr


def test_weights_that_differ_between_variants_are_noted():
    noise = torch.Generator().manual_seed(0)

    def make_model():
        model = nn.Sequential(nn.Conv2d(3, 4, 3))
        nn.init.normal_(model[0].weight, generator=noise)
        return model

    notes = compare(make_model, [RECIPE], noisy, seeds=2).notes
    assert any("did not start from the same weights" in note for note in notes)
    assert not compare(lambda seed: nn.Sequential(nn.Conv2d(3, 4, 3)), [RECIPE], noisy, seeds=2).notes


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: make_model(seed),  # noqa: PLW0108
        lambda other: make_model(other),  # noqa: PLW0108
        lambda seed, /: make_model(seed),
        lambda seed=None, /: make_model(seed) if seed is not None else None,
        lambda width=12, seed=7: make_model() if width == 12 and seed != 7 else None,
        lambda *, seed=None: make_model() if seed is not None else None,
        lambda width=12, **options: make_model() if width == 12 and not options else None,
        make_model,
    ],
)
def test_make_model_with_and_without_a_seed(make):
    cells = compare(make, [RECIPE], noisy, seeds=2).cells
    assert all(cell.value is not None for cell in cells)
    assert len({cell.weights for cell in cells}) == 2


def test_lambdas_are_variants():
    seen = []

    def train(model, seed, report):
        seen.extend([attention_of(model).e_lambda] if attended_by(model) else [])
        return noisy(model, seed, report)

    comparison = compare(make_model, [RECIPE], train, seeds=1, e_lambdas=iter([1e-4, 0.1, 0.1]))
    assert [row.variant for row in comparison.differences] == ["simam 0.0001", "simam 0.1"]
    assert seen == [1e-4, 0.1]


def shuffled(images, generator=None):
    pairs = TensorDataset(images, torch.arange(len(images)))
    return DataLoader(pairs, batch_size=16, shuffle=True, generator=generator)


@pytest.mark.parametrize(
    "make_batches",
    [
        lambda images: [(images, None)],
        lambda images: iter([(images, None)]),  # can be read only once, and there are four runs
        lambda images: images,
        lambda images: itertools.islice(shuffled(images.repeat(2, 1, 1, 1)), 4),
        shuffled,
        lambda images: shuffled(images, torch.Generator()),
    ],
)
def test_trained_weights_get_the_same_warm_start_in_every_variant(make_batches):
    images = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 3 + 1
    means = {}

    def train(model, seed, report):
        means.setdefault(attended_by(model), []).append(model[1].running_mean.clone())
        expected = model[0](images).mean((0, 2, 3))
        torch.testing.assert_close(model[1].running_mean, expected, rtol=0.2, atol=0.05)
        return 1.0

    comparison = compare(make_model, [RECIPE], train, ["se"], seeds=1, batches=make_batches(images))
    assert [cell.error for cell in comparison.cells] == [""] * 4
    assert torch.equal(*means[""])  # plain and plain again
    assert not torch.allclose(means[""][0], means["SEModule"][0])


def test_a_forward_that_writes_to_its_input_gets_copies_of_the_batches():
    images, means = torch.randn(8, 3, 12, 12), []

    def make_in_place():
        model = make_model()
        model.register_forward_pre_hook(lambda _module, args: args[0].add_(1))
        return model

    def train(model, seed, report):
        means.append(model[1].running_mean)
        return 1.0

    before = images.clone()
    compare(make_in_place, [RECIPE], train, seeds=1, batches=[images])
    assert torch.equal(images, before)
    assert torch.equal(means[0], means[1])  # plain and plain again


def fail(how):
    def train(model, seed, report):
        if attended_by(model) == "SEModule" and seed in (1, 2):
            if how == "raise":
                raise RuntimeError("loss is inf at step 3")
            return how
        noise = random.Random(f"{attended_by(model)} {seed}").gauss(0, 0.1)
        return noisy(model, seed, report) + {"SEModule": 9}.get(attended_by(model), 0) + noise

    return train


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("raise", "RuntimeError: loss is inf at step 3"),
        (math.nan, "diverged: the training function returned nan"),
        (math.inf, "diverged: the training function returned inf"),
        (None, "train returned a NoneType; it must return a number"),
    ],
)
def test_a_run_that_goes_wrong_is_a_result(how, error):
    comparison = compare(make_model, [RECIPE], fail(how), ["se"], seeds=8)
    assert len(comparison.cells) == 32
    failed = [cell for cell in comparison.cells if cell.value is None]
    assert [(cell.variant, cell.seed) for cell in failed] == [("se", 1), ("se", 2)]
    assert all(cell.error.startswith(error) for cell in failed)
    (se,) = (row for row in comparison.differences if row.variant == "se")
    assert (se.seeds, se.failed, se.verdict) == (6, 2, "not resolved")  # +9 in the six others, and still
    assert se.p < 0.05
    assert re.search(
        rf"se at {RECIPE} \(\+.*\) is not resolved although .* runs of se at {RECIPE} failed", comparison.answer
    )
    assert "None of the others differs" in comparison.answer
    assert f"se {RECIPE} seed 1" in comparison.to_markdown()
    assert re.search(rf"\| se \| {RECIPE} \|.*\| 2 of 8 \|", comparison.to_markdown())


def test_a_first_run_that_fails_is_a_result_and_gives_one_warning():
    with pytest.warns(UserWarning, match="first run failed.*NoneType") as caught:
        found = compare(make_model, [RECIPE], lambda model, seed, report: None, seeds=2)
    assert len(caught) == 1
    assert [cell.value for cell in found.cells] == [None] * 6
    assert found.answer == "No run succeeded, so there is no result."
    assert re.search("6 of 6 runs failed.* not repeat.* another study file or name", found.to_markdown())


def test_a_metric_of_the_wrong_sign_is_reported_at_once_and_in_the_report():
    def train(model, seed, report):
        for epoch in range(4):
            report(epoch, 2.0 - 0.3 * epoch)
        return 0.8 + seed / 100

    with pytest.warns(UserWarning, match="higher must be better"):
        comparison = compare(make_model, [RECIPE], train, seeds=2)
    assert any("return the negative of a loss" in note for note in comparison.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compare(make_model, [RECIPE], noisy, seeds=2).notes == ()


def test_runs_that_do_not_depend_on_the_seed_are_noted():
    comparison = compare(make_model, [RECIPE], lambda model, seed, report: 3.0, seeds=6)
    assert any("same value at every seed" in note for note in comparison.notes)
    assert comparison.differences[0].verdict == "noise estimate only"


def make_attended(seed):
    return inject(make_model(seed), RECIPE, verify=False)


def no_run(model, seed, report):
    raise AssertionError("a run was started")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"recipes": [RECIPE, "papr"]}, RecipeError, "did you mean 'paper'"),
        ({"recipes": [RECIPE, "after bottleneck"]}, NoMatchError, "bottleneck"),
        ({"recipes": ["yolo-neck"]}, NoMatchError, "matches no site"),
        ({"e_lambdas": [0.1, -1.0]}, RecipeError, "e_lambda"),
        ({"recipes": []}, CompareError, says("recipes", "at least one")),
        ({"recipes": "paper"}, CompareError, says("recipes", "list")),
        ({"recipes": [RECIPE, RECIPE]}, CompareError, says("two recipes", "'after sequential.0'")),
        ({"against": ["sse"]}, CompareError, says("'sse'", "se, eca, cbam, gc")),
        ({"seeds": 2.5}, CompareError, says("seeds is 2.5", "at least 1")),
        ({"seeds": 0}, CompareError, says("at least 1", "5 for a verdict")),
        ({"seeds": "10"}, CompareError, says("seeds is '10'", "an int")),
        ({"against": "se"}, CompareError, says("against must be a list", "'se'")),
        ({"e_lambdas": 0.1}, CompareError, says("e_lambdas must be a list", "0.1")),
        ({"e_lambdas": [None]}, CompareError, says("e_lambdas holds None")),
        ({"recipes": {"rules": [{"path": "0", "after": "output"}]}}, CompareError, says("recipes must be a list")),
        ({"recipes": load_recipe("paper")}, CompareError, says("recipes must be a list", "Recipe")),
        ({"train": None}, CompareError, says("train must be a function")),
        ({"settings": 3}, CompareError, says("settings a dict")),
        ({"resolve": "0.5"}, CompareError, says("resolve is '0.5'", "number")),
        ({"budget": math.nan}, CompareError, says("budget is nan", "number")),
        ({"budget": -1}, CompareError, says("budget is -1", "number from 0")),
        ({"resolve": -0.5}, CompareError, says("resolve is -0.5", "number from 0")),
        ({"make_model": 3}, CompareError, says("make_model must be a function", "an int")),
        ({"settings": {"data": object()}}, CompareError, says("settings cannot be written as JSON", "object")),
        ({"settings": {"rate": math.nan}}, CompareError, says("settings cannot be written as JSON")),
        ({"batches": DataLoader(torch.zeros(2, 3, 4, 4), 8, drop_last=True)}, ModelError, "holds no batch"),
        ({"storage": "."}, CompareError, says("is a folder")),
        ({"storage": "nowhere/study.journal"}, CompareError, says("no such folder", "nowhere")),
        ({"make_model": make_attended}, CompareError, says("with SimAM", "plain")),
        ({"make_model": partial(nn.Module.train, make_model())}, CompareError, says("same network twice", "new one")),
        ({"make_model": lambda: "resnet18"}, CompareError, says("make_model", "str", "torch.nn.Module")),
        ({"make_model": lambda: 1 / 0}, ZeroDivisionError, "division"),
        ({"make_model": lambda width, seed=0: make_model()}, CompareError, says("make_model", "'width'")),
        ({"make_model": make_model()}, CompareError, says("make_model must be a function", "a Sequential")),
    ],
)
def test_arguments_that_are_not_fit_are_refused_before_the_first_run(given, error, message, tmp_path):
    fitting = {"make_model": make_model, "recipes": [RECIPE], "train": no_run, "storage": tmp_path / "study.journal"}
    with pytest.raises(error, match=message):
        compare(**fitting | given)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: {"input": x}])
def test_costs_are_measured(wrap):
    example = wrap(torch.zeros(2, 3, 12, 12))
    comparison = compare(make_model, [RECIPE], noisy, ["se"], seeds=1, example_inputs=example)
    plain, simam, se = comparison.costs("plain"), comparison.costs("simam", RECIPE), comparison.costs("se", RECIPE)
    assert plain.parameters == simam.parameters == sum(p.numel() for p in make_model().parameters())
    assert se.parameters > plain.parameters
    assert simam.kept_bytes > plain.kept_bytes > 0
    assert plain.seconds > 0


def test_an_optional_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(CompareError, match=says("optuna", "not installed", "pip install")):
        compare(make_model, [RECIPE], noisy)
