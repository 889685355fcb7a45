"""The main job: build, plan, apply, verify, save, report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from simam_inject.cli.options import EXPORTS
from simam_inject.cli.working import DONE, NO_EFFECT, show, show_error, working
from simam_inject.errors import ModelError

if TYPE_CHECKING:
    from simam_inject import Plan, Recipe
    from simam_inject.export import ExportReport
    from simam_inject.planning.records import Verification
    from simam_inject.zoo import ZooModel


@dataclass(frozen=True, slots=True)
class Order:
    """What the user asked for, parsed."""

    model: str
    recipe: str | None
    after: tuple[str, ...]
    before: tuple[str, ...]
    exclude: tuple[str, ...]
    e_lambda: float | None
    input_size: tuple[int, ...] | None
    pretrained: bool
    dry_run: bool
    why: bool
    as_json: bool
    output: Path | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done."""

    built: ZooModel
    recipe: Recipe
    plan: Plan
    verification: Verification | None
    exported: ExportReport | None = None

    @property
    def exit_code(self) -> int:
        """1 if the recipe has no effect or a check failed."""
        verified = self.verification is None or self.verification.ok
        return DONE if self.has_effect and verified else NO_EFFECT

    @property
    def has_effect(self) -> bool:
        """SimAM goes somewhere, or is there already where the recipe wants it."""
        return bool(self.plan.insertions) or self.plan.is_done


def run(order: Order) -> None:
    """Do what was ordered and report it.

    Raises:
        typer.Exit: Always, with the exit code.
    """
    with working(steps=2 if order.dry_run else 5, quiet=order.as_json) as step:
        outcome = _carry_out(order, step)
    if order.as_json:
        typer.echo(json.dumps(_as_dict(order, outcome), indent=2))
    else:
        show(_render(order, outcome))
    if not outcome.has_effect:
        from simam_inject.operation import no_effect

        show_error(no_effect(outcome.plan))
    raise typer.Exit(outcome.exit_code)


def _carry_out(order: Order, step: Any) -> Outcome:
    from simam_inject.cli.composing import check_exclude, compose_recipe

    recipe = compose_recipe(order.recipe, order.after, order.before, order.exclude, order.e_lambda)
    step(f"building {order.model}")
    from simam_inject import plan, verify
    from simam_inject.cli.models import example_inputs, sized
    from simam_inject.zoo import build

    built = build(order.model, pretrained=order.pretrained)
    inputs = example_inputs(built, order.input_size)
    step("running it once and planning")
    with sized(order.input_size):
        check_exclude(order.exclude, built.model, inputs)
        made = plan(built.model, recipe, example_inputs=inputs)
    outcome = Outcome(built, recipe, made, None)
    if order.dry_run or not outcome.has_effect:
        return outcome
    step("inserting SimAM")
    made.apply()
    step("verifying")
    outcome = Outcome(built, recipe, made, verify(built.model, example_inputs=inputs))
    if order.output is not None and outcome.exit_code == DONE:
        step(f"saving {order.output}")
        outcome = replace(outcome, exported=_save(built, order.output, inputs))
    return outcome


def _save(built: ZooModel, path: Path, inputs: Any) -> ExportReport | None:
    """A .pt is ultralytics' own checkpoint, which `yolo train model=...` continues with; the rest is ours."""
    if path.suffix in EXPORTS:
        from simam_inject.export import export

        return export(built.model, path, example_inputs=inputs)
    if path.suffix != ".pt":
        from simam_inject.persist import save

        save(built.model, path)
    elif built.source == "ultralytics":
        cast(Any, built.model).save(str(path))
    else:
        raise ModelError(f"{built.name} is no YOLO, and a .pt is a YOLO checkpoint; write --output FILE.safetensors")
    return None


def _render(order: Order, outcome: Outcome) -> Any:
    from simam_inject.reporting import render_plan

    return render_plan(
        outcome.plan.insertions,
        outcome.plan.skips,
        outcome.verification,
        present=outcome.plan.present,
        heading=f"{order.model}, {outcome.recipe.name or order.recipe or 'recipe'} ({outcome.built.note})",
        applied=outcome.verification is not None,
        why=order.why,
        next_steps=tuple(_next_steps(order, outcome)),
    )


def _as_dict(order: Order, outcome: Outcome) -> dict[str, Any]:
    from simam_inject.reporting import plan_to_dict

    return {
        "model": order.model,
        "source": outcome.built.source,
        "note": outcome.built.note,
        "recipe": outcome.recipe.to_dict(),
        "dry_run": order.dry_run,
        **plan_to_dict(outcome.plan.insertions, outcome.plan.skips, outcome.verification, present=outcome.plan.present),
        "output": str(order.output) if order.output and outcome.exit_code == DONE else None,
    }


def _next_steps(order: Order, outcome: Outcome) -> Iterator[str]:
    if not outcome.has_effect:
        yield f"see what can be named: simam-inject sites {order.model}"
    elif outcome.verification is None:
        yield "insert it: the same command without --dry-run"
    elif not outcome.verification.ok:
        yield "do not train this model; report the failure with the lines above and the name of the model"
    else:
        yield f"in your code: from simam_inject import inject; inject(model, {_as_code(order, outcome)})"
        if order.output is not None and order.output.suffix == ".pt":
            yield f"train it: yolo train model={order.output} data=...; afterwards: simam-inject check best.pt"
        elif outcome.exported is not None:
            proof = outcome.exported
            yield f"{proof.path} holds {proof.live} live sites and is {proof.difference:.1e} from eager ({proof.form})"
        elif order.output is not None:
            yield f"from the file: from simam_inject.persist import load; load({str(order.output)!r}, model)"
        else:
            yield "keep it: add --output FILE.safetensors"


def _as_code(order: Order, outcome: Outcome) -> str:
    """The recipe as the shortest thing that `inject` takes."""
    selectors = [f"after {text}" for text in order.after] + [f"before {text}" for text in order.before]
    named = [*([order.recipe] if order.recipe else []), *selectors]
    plain = len(named) == 1 and not order.exclude and order.e_lambda is None
    keys = {key: value for key, value in outcome.recipe.to_dict().items() if key in ("e_lambda", "rules")}
    return repr(named[0] if plain else keys)
