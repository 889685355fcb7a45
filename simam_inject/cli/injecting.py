"""The main job: build, plan, apply, calibrate, verify, save, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from simam_inject.cli.composing import as_code, compose_recipe
from simam_inject.cli.options import EXPORTS, InjectOptions, Options
from simam_inject.cli.preparing import Prepared, check_model_name, make_plan, prepare
from simam_inject.cli.working import DONE, NO_EFFECT, show, show_error, working
from simam_inject.errors import ModelError

if TYPE_CHECKING:
    from simam_inject import Plan, Recipe
    from simam_inject.export import ExportReport
    from simam_inject.planning.records import Verification

_IMAGES = 256
"""Images that `--calibrate` reads at the most."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done."""

    prepared: Prepared
    recipe: Recipe
    plan: Plan
    verification: Verification | None = None
    calibration: Any = None
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


def run(options: Options, more: InjectOptions) -> None:
    """Do what the options say and report it.

    Raises:
        typer.Exit: Always, with the exit code.
    """
    _check_together(options, more)
    steps = 2 if more.dry_run else 4 + (more.calibrate is not None) + (more.output is not None)
    with working(steps, as_json=options.as_json, quiet=options.quiet) as step:
        outcome = _carry_out(options, more, step)
    if options.as_json:
        typer.echo(json.dumps(_as_dict(options, more, outcome), indent=2))
    elif not options.quiet:
        show(_render(options, more, outcome))
    if not outcome.has_effect:
        show_error(no_effect(outcome.plan))
    raise typer.Exit(outcome.exit_code)


def _check_together(options: Options, more: InjectOptions) -> None:
    """Refuse options that do not go together, before anything is built."""
    if more.dry_run and more.output:
        raise typer.BadParameter("a dry run makes nothing that could be saved", param_hint="--output")
    if more.dry_run and more.calibrate:
        raise typer.BadParameter("a dry run changes nothing that could be calibrated", param_hint="--calibrate")
    suffix = "" if more.output is None else more.output.suffix
    if more.dynamic and suffix not in EXPORTS[:2]:
        raise typer.BadParameter("only --output x.onnx and x.pt2 can have varying sizes", param_hint="--dynamic")
    if suffix == ".pt" and not _may_be_yolo(options.model):
        raise typer.BadParameter(
            f"a .pt is a checkpoint of ultralytics, and {options.model} is another library's model; "
            "write --output FILE.safetensors",
            param_hint="--output",
        )


def _may_be_yolo(name: str) -> bool:
    from simam_inject.zoo.yolo import is_yolo_name

    prefix, colon, _ = name.partition(":")
    return is_yolo_name(name) or (bool(colon) and prefix not in ("timm", "torchvision"))


def _carry_out(options: Options, more: InjectOptions, step: Callable[[str], None]) -> Outcome:
    check_model_name(options.model)
    recipe = compose_recipe(options)
    prepared = prepare(options, step)
    model = prepared.built.model
    step("running it once and planning")
    outcome = Outcome(prepared, recipe, make_plan(prepared, recipe, options))
    if more.dry_run or not outcome.has_effect:
        return outcome
    from simam_inject.api import verify

    step("inserting SimAM")
    outcome.plan.apply()
    if options.strength != 1.0:
        _set_strength(model, options.strength)
    if more.calibrate is not None:
        step(f"calibrating on {more.calibrate}")
        outcome = replace(outcome, calibration=_calibrate(prepared, more.calibrate))
    step("verifying")
    outcome = replace(outcome, verification=verify(model, example_inputs=prepared.inputs))
    if more.output is not None and outcome.exit_code == DONE:
        step(f"saving {more.output}")
        outcome = replace(outcome, exported=_save(prepared, more))
    return outcome


def _set_strength(model: Any, strength: float) -> None:
    from simam_inject.warmup import set_strength

    set_strength(model, strength)


def _calibrate(prepared: Prepared, folder: Path) -> Any:
    from simam_inject.cli.images import batches_of
    from simam_inject.warmup import calibrate

    return calibrate(prepared.built.model, batches_of(prepared, folder, limit=_IMAGES))


def _save(prepared: Prepared, more: InjectOptions) -> ExportReport | None:
    """A .pt is ultralytics' own checkpoint, which `yolo train model=...` continues with."""
    built, path = prepared.built, more.output
    assert path is not None
    if path.suffix in EXPORTS:
        from simam_inject.export import export

        return export(built.model, path, example_inputs=prepared.inputs, dynamic=more.dynamic)
    if path.suffix != ".pt":
        from simam_inject.persist import save

        save(built.model, path)
    elif hasattr(built.model, "save"):
        built.model.save(str(path))
    else:
        raise ModelError(
            f"{built.name} is not a YOLO object, and a .pt is its checkpoint; write --output FILE.safetensors"
        )
    return None


def no_effect(plan: Plan) -> str:
    """The sentence that `inject` raises for a plan that takes no site."""
    from simam_inject.api import no_effect

    return no_effect(plan)


def _render(options: Options, more: InjectOptions, outcome: Outcome) -> Any:
    from simam_inject.reporting import render_plan

    strength = "" if options.strength == 1.0 else f", strength {options.strength:g}"
    return render_plan(
        outcome.plan,
        outcome.verification,
        heading=f"{options.model}, {outcome.recipe.name or 'recipe'}{strength} ({outcome.prepared.built.note})",
        applied=outcome.verification is not None,
        why=more.why,
        verbose=options.verbose,
        calibration=outcome.calibration,
        next_steps=tuple(_next_steps(options, more, outcome)),
    )


def _as_dict(options: Options, more: InjectOptions, outcome: Outcome) -> dict[str, Any]:
    from simam_inject.reporting import calibration_to_dict, plan_to_dict

    return {
        "model": options.model,
        "source": outcome.prepared.built.source,
        "note": outcome.prepared.built.note,
        "recipe": outcome.recipe.to_dict(),
        "strength": options.strength,
        "dry_run": more.dry_run,
        **plan_to_dict(outcome.plan, outcome.verification),
        "calibration": calibration_to_dict(outcome.calibration),
        "output": str(more.output) if more.output and outcome.exit_code == DONE else None,
    }


def _next_steps(options: Options, more: InjectOptions, outcome: Outcome) -> Iterator[str]:
    size = f" --input-size {options.input_size}" if options.input_size else ""
    if not outcome.has_effect:
        yield f"see what can be named: simam-inject sites {options.model}{size}"
        return
    if outcome.verification is None:
        yield "insert it: the same command without --dry-run"
        return
    if not outcome.verification.ok:
        yield "do not train this model; report the failure with the lines above and the name of the model"
        return
    inputs = outcome.prepared.inputs_code
    arguments = [as_code(options, outcome.recipe), *([f"example_inputs={inputs}"] if inputs else [])]
    if options.strength != 1.0:
        arguments.append(f"strength={options.strength:g}")
    yield f"in your code: from simam_inject import inject; inject(model, {', '.join(arguments)})"
    output = more.output
    if output is None:
        yield "keep it: add --output FILE.safetensors"
    elif output.suffix == ".pt":
        yield f"train it: yolo train model={output} data=...; afterwards: simam-inject check best.pt"
    elif outcome.exported is not None:
        proof = outcome.exported
        yield f"{proof.path} holds {proof.live} sites; output {proof.difference:.1e} from the model's ({proof.form})"
    else:
        yield f"load it: from simam_inject.persist import load; load({str(output)!r}, model)"
