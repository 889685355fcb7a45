"""The main job: build, plan, apply, calibrate, verify, save, report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from simam_inject.cli.options import EXPORTS, InjectOptions
from simam_inject.cli.preparing import Planned, batches_of, make_plan
from simam_inject.cli.program import Report, Step
from simam_inject.errors import ModelError
from simam_inject.zoo.names import is_yolo_name

if TYPE_CHECKING:
    from simam_inject.export import ExportReport
    from simam_inject.planning.records import Verification
    from simam_inject.warmup import Calibration


@dataclass(slots=True)
class Outcome:
    """What was done with the plan, so far."""

    verification: Verification | None = None
    calibration: Calibration | None = None
    exported: ExportReport | None = None


def inject(options: InjectOptions, step: Step) -> Report:
    """Put SimAM into MODEL, verify it, and report every site."""
    _check_together(options)
    work = (options.calibrate is not None) + (options.output is not None)
    planned = make_plan(options, step, steps=2 if options.dry_run else 4 + work)
    outcome = Outcome()
    if planned.has_effect and not options.dry_run:
        _carry_out(options, planned, outcome, step)
    ok = planned.has_effect and (outcome.verification is None or outcome.verification.ok)
    from simam_inject.api import no_effect

    error = "" if planned.has_effect else no_effect(planned.plan)
    return Report(_render(options, planned, outcome), _as_dict(options, planned, outcome, ok), ok, error)


def _check_together(options: InjectOptions) -> None:
    """Refuse options that do not go together, before anything is built."""
    if options.dry_run and options.output:
        raise typer.BadParameter("--dry-run changes nothing, so there is nothing to save", param_hint="--output")
    if options.dry_run and options.calibrate:
        raise typer.BadParameter(
            "--dry-run changes nothing, so there is nothing to calibrate", param_hint="--calibrate"
        )
    suffix = options.output.suffix if options.output else ""
    if options.dynamic and suffix not in EXPORTS[:2]:
        raise typer.BadParameter("--dynamic needs --output x.onnx or x.pt2", param_hint="--dynamic")
    if suffix == ".pt" and not _may_be_yolo(options.model):
        raise typer.BadParameter(
            f".pt is the checkpoint format of ultralytics, and {options.model} is not an ultralytics model; "
            "use --output FILE.safetensors",
            param_hint="--output",
        )


def _may_be_yolo(name: str) -> bool:
    prefix, colon, _ = name.partition(":")
    return is_yolo_name(name) or (bool(colon) and prefix not in ("timm", "torchvision"))


def _carry_out(options: InjectOptions, planned: Planned, outcome: Outcome, step: Step) -> None:
    from simam_inject.api import verify
    from simam_inject.warmup import calibrate

    step("inserting SimAM")
    model = planned.apply(options.strength)
    if options.calibrate is not None:
        step(f"calibrating on {options.calibrate}")
        outcome.calibration = calibrate(model, batches_of(planned, options.calibrate))
    step("verifying")
    outcome.verification = verify(model, example_inputs=planned.inputs)
    if options.output is not None and outcome.verification.ok:
        step(f"saving {options.output}")
        outcome.exported = _save(options, planned)


def _save(options: InjectOptions, planned: Planned) -> ExportReport | None:
    """A .pt is ultralytics' own checkpoint, which `yolo train model=...` continues with."""
    model, path = planned.built.model, options.output
    assert path is not None
    if path.suffix in EXPORTS:
        from simam_inject.export import export

        return export(model, path, example_inputs=planned.inputs, dynamic=options.dynamic)
    if path.suffix != ".pt":
        from simam_inject.persist import save

        save(model, path)
    elif hasattr(model, "save"):
        model.save(str(path))
    else:
        raise ModelError(
            f"{options.model} is not a YOLO object, so it has no .pt checkpoint; use --output FILE.safetensors"
        )
    return None


def _render(options: InjectOptions, planned: Planned, outcome: Outcome) -> Any:
    from simam_inject.reporting import render_plan

    strength = "" if options.strength == 1.0 else f", strength {options.strength:g}"
    return render_plan(
        planned.plan,
        outcome.verification,
        heading=f"{planned.heading}{strength} ({planned.built.note})",
        applied=outcome.verification is not None,
        why=options.why,
        verbose=options.verbose,
        calibration=outcome.calibration,
        next_steps=tuple(_next_steps(options, planned, outcome)),
    )


def _as_dict(options: InjectOptions, planned: Planned, outcome: Outcome, ok: bool) -> dict[str, Any]:
    from simam_inject.reporting import plan_to_dict

    return {
        "model": options.model,
        "source": planned.built.source,
        "note": planned.built.note,
        "strength": options.strength,
        "dry_run": options.dry_run,
        **plan_to_dict(planned.plan, outcome.verification),
        "calibration": outcome.calibration,
        "output": options.output if ok else None,
    }


def _next_steps(options: InjectOptions, planned: Planned, outcome: Outcome) -> Iterator[str]:
    size = f" --input-size {options.input_size}" if options.input_size else ""
    if not planned.has_effect:
        yield f"list what can be named: simam-inject sites {options.model}{size}"
        return
    if outcome.verification is None:
        yield "inject: the same command without --dry-run"
        return
    if not outcome.verification.ok:
        yield "do not train this model; please report the lines above and the name of the model"
        return
    inputs = planned.inputs_code
    arguments = [_recipe_code(options, planned), *([f"example_inputs={inputs}"] if inputs else [])]
    if options.strength != 1.0:
        arguments.append(f"strength={options.strength:g}")
    yield f"in Python: from simam_inject import inject; inject(model, {', '.join(arguments)})"
    output = options.output
    if output is None:
        yield "save: add --output FILE.safetensors"
    elif output.suffix == ".pt":
        yield f"train: yolo train model={output} data=..., then simam-inject check best.pt"
    elif proof := outcome.exported:
        yield f"{proof.path} has {proof.live} live sites; its output differs by {proof.difference:.1e} ({proof.form})"
    else:
        yield f"load: from simam_inject.persist import load; load({str(output)!r}, model)"


def _recipe_code(options: InjectOptions, planned: Planned) -> str:
    """The recipe as the shortest thing that `inject` takes."""
    named = [*([options.recipe] if options.recipe else []), *(" ".join(place) for place in options.selectors)]
    plain = len(named) == 1 and not options.exclude and options.e_lambda is None
    keys = {key: value for key, value in planned.recipe.to_dict().items() if key in ("e_lambda", "rules")}
    return repr(named[0] if plain else keys)
