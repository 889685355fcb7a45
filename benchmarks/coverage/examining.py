"""One model, all recipes, one row."""

from __future__ import annotations

import copy
import re
import time
import warnings
from collections import Counter
from typing import Any

from torch import nn

from benchmarks.coverage.catalogue import build_light, build_model
from benchmarks.coverage.examples import Inputs, declared_inputs, second_inputs, small_inputs
from benchmarks.coverage.probes import check_numbers, check_structure, randomise, run
from benchmarks.coverage.records import Entry, Outcome, Row
from simam_inject import Plan, Recipe, Rule, eject, plan
from simam_inject.errors import NoMatchError

RECIPES = {
    "block-output": Recipe(name="block-output", rules=(Rule(block="*", after="output"),)),
    "every-conv": Recipe(name="every-conv", rules=(Rule(path="*", after={"op": "conv"}),)),
    "residual": Recipe(name="residual", rules=(Rule(block="*", before="residual"),)),
}
LARGE = 60_000_000
"""Parameters above which a model that is only planned is built without values."""


def examine(entry: Entry, *, numeric: bool) -> Row:
    """Build the model and put each recipe into it and out again."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, built = _build(entry, light=not numeric)
        declared = declared_inputs(model, built)
        small = second = None
        if numeric:
            randomise(model)
            small = small_inputs(model, built)
            second = second_inputs(model, built, small)
        outcomes = tuple(_try(name, model, declared, small, second) for name in RECIPES)
    return Row(
        library=entry.library,
        name=entry.name,
        family=entry.family,
        parameters=entry.parameters,
        extent="numeric" if numeric else "planned",
        sizes=tuple(str(inputs) for inputs in (declared, small, second) if inputs is not None),
        outcomes=outcomes,
        seconds=round(time.perf_counter() - start, 2),
    )


def _build(entry: Entry, *, light: bool) -> tuple[nn.Module, Any]:
    if light and entry.parameters > LARGE:
        try:
            return build_light(entry.library, entry.name)
        except Exception:  # asks for values while it is built
            pass
    return build_model(entry.library, entry.name)


def _try(name: str, model: nn.Module, declared: Inputs, small: Inputs | None, second: Inputs | None) -> Outcome:
    try:
        return _apply(name, model, declared, small, second)
    except NoMatchError as error:
        return Outcome(name, skipped={f"nothing to attend: {_general(str(error).splitlines()[0])}": 1})
    except Exception as error:
        eject(model)
        return Outcome(name, error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:400])


def _apply(name: str, model: nn.Module, declared: Inputs, small: Inputs | None, second: Inputs | None) -> Outcome:
    start = time.perf_counter()
    planned = plan(model, RECIPES[name], example_inputs=declared.args)
    plan_seconds = time.perf_counter() - start
    classes = {path: type(module) for path, module in model.named_modules()}
    if small is None:
        keys = list(model.state_dict())
        planned.apply()
        findings = tuple(check_structure(model, declared, classes, keys))
    else:
        chosen, inputs = _attendable(name, model, (small, second, declared))
        other = second if inputs is small else small
        stock = (run(model, inputs), classes, copy.deepcopy(model.state_dict()))
        chosen.apply()
        findings = tuple(check_numbers(model, inputs, other, stock))
    return Outcome(
        name,
        passed=sum(finding.ok is True for finding in findings),
        findings=tuple(finding for finding in findings if finding.ok is not True),
        plan_seconds=round(plan_seconds, 3),
        **_counted(planned),
    )


def _attendable(name: str, model: nn.Module, sizes: tuple[Inputs | None, ...]) -> tuple[Plan, Inputs]:
    """The plan at the first of the sizes at which there is something to attend, i.e. not all maps are 1x1."""
    given = [inputs for inputs in sizes if inputs is not None]
    for inputs in given[:-1]:
        try:
            return plan(model, RECIPES[name], example_inputs=inputs.args), inputs
        except NoMatchError:
            continue
    return plan(model, RECIPES[name], example_inputs=given[-1].args), given[-1]


def _counted(planned: Plan) -> dict[str, Any]:
    by_edit = Counter(type(insertion.edit).__name__ for insertion in planned.insertions)
    return {
        "planned": len(planned.insertions),
        "output": by_edit["Output"],
        "input": by_edit["Input"],
        "expression": by_edit["Rewritten"],
        "inferred": sum(not insertion.axes_measured for insertion in planned.insertions),
        "notes": dict(Counter(_general(i.note) for i in planned.insertions if i.note)),
        "skipped": dict(Counter(_general(skip.reason) for skip in planned.skips if skip.hit)),
    }


def _general(reason: str) -> str:
    """The reason without paths and numbers, so that equal ones count together."""
    reason = re.sub(r"\([\d, ]+\)", "(...)", reason)
    reason = re.sub(r"since \S+ cannot", "since its block cannot", reason)
    reason = re.sub(r"the value of \S+,", "the value of another,", reason)
    return reason[:200]
