"""One model of every family that has a spatial conv map, small: all sites at once, in and out again.

The default run does so with those of `families.txt` above the line, and puts SimAM into all others without running the
numbers, on meta tensors; `pytest -m zoo` runs all of them, at two sizes.

The whole sweep, model by model and recipe by recipe: `python -m benchmarks.coverage`; its result is docs/coverage.md.
"""

import os
import warnings
from pathlib import Path

import pytest
import torch

from benchmarks.coverage.catalogue import build_light, build_model, family_of, take_stock
from benchmarks.coverage.choice import exclusion
from benchmarks.coverage.examples import declared_inputs, second_inputs, small_inputs
from benchmarks.coverage.probes import check_structure, randomise, run
from benchmarks.coverage.workers import run_all
from simam_inject import eject, injected, plan, verify
from simam_inject.verification.outputs import difference

DAILY, OTHERS = (
    part.split() for part in Path(__file__).with_name("families.txt").read_text(encoding="utf-8").split("---")
)
"""The models of the default run, and those that only `pytest -m zoo` takes, to keep the former within minutes."""
FAMILIES = DAILY + OTHERS
EVERYTHING = {
    "version": 1,
    "rules": [
        {"block": "*", "before": "residual", "optional": True},
        {"path": "*", "after": {"op": "conv"}, "optional": True},
        {"block": "*", "after": "output", "optional": True},
    ],
}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each library's own
        yield


def check(key, *, two_sizes):
    library, _, name = key.partition(":")
    model, built = build_model(library, name)
    randomise(model)
    inputs = small_inputs(model, built)
    second = second_inputs(model, built, inputs) if two_sizes else None
    plain, keys = run(model, inputs), list(model.state_dict())
    classes = [type(module) for module in model.modules()]
    planned = plan(model, EVERYTHING, example_inputs=inputs.args)
    planned.apply()
    assert len(injected(model)) == len(planned.insertions) > 0
    assert all(skip.reason for skip in planned.skips)
    for size in (inputs, second):
        if size is not None:
            found = verify(model, example_inputs=size.args)
            assert found.ok, [check for check in found.checks if check.ok is False]
    assert difference(run(model, inputs), plain) is not None
    eject(model)
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == keys
    assert difference(run(model, inputs), plain) is None


@pytest.mark.parametrize("key", DAILY)
def test_family(key):
    check(key, two_sizes=False)


@pytest.mark.parametrize("key", OTHERS)
def test_family_without_numbers(key):
    library, _, name = key.partition(":")
    build = build_light if library == "timm" else build_model  # detectors run for real
    model, built = build(library, name)
    inputs, keys = declared_inputs(model, built), list(model.state_dict())
    classes = {path: type(module) for path, module in model.named_modules()}
    planned = plan(model, EVERYTHING, example_inputs=inputs.args).apply()
    assert len(injected(planned)) > 0
    findings = list(check_structure(model, inputs, classes, keys))
    assert [finding.ok for finding in findings] == [True] * 3, findings


@pytest.mark.zoo
@pytest.mark.parametrize("key", FAMILIES)
def test_family_at_two_sizes(key):
    check(key, two_sizes=True)


@pytest.mark.zoo
def test_no_family_is_left_out():
    import timm

    listed = {family_of("timm", key.partition(":")[2]) for key in FAMILIES if key.startswith("timm:")}
    outside = []
    for family in set(timm.list_modules()) - listed:
        entries = [take_stock("timm", name) for name in timm.list_models(module=family)[:2]]
        outside += [entry.name for entry in entries if not exclusion(entry)]
    assert not outside


def _work(task):
    if task == "crash":
        os._exit(3)
    if task == "hang":
        torch.ones(1)
        while True:
            pass
    if task == "raise":
        raise ValueError("no")
    return task.upper()


def test_a_crash_and_a_time_out_are_results():
    found = {
        task: (result, error)
        for task, result, error in run_all(["fine", "crash", "hang", "raise"], _work, workers=2, timeout=3.0)
    }
    assert found["fine"] == ("FINE", "")
    assert found["crash"] == (None, "the process died (exit code 3)")
    assert found["hang"] == (None, "timed out after 3 s")
    assert found["raise"] == (None, "ValueError: no")
