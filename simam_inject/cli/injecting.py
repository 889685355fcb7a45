"""The main job: build, plan, apply, calibrate, verify, save, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from simam_inject.cli.options import EXPORTS, InjectOptions
from simam_inject.cli.preparing import Prepared, batches_of, make_plan
from simam_inject.cli.program import Report, Step
from simam_inject.errors import ModelError
from simam_inject.zoo.names import is_yolo_name

if TYPE_CHECKING:
    from simam_inject import Plan
    from simam_inject.planning.records import Verification
    from simam_inject.warmup import Calibration


def inject(options: InjectOptions, step: Step) -> Report:
    """Put SimAM into MODEL, verify it, and report every site."""
    _check_together(options)
    work = (options.calibrate is not None) + (options.output is not None)
    prepared, plan = make_plan(options, step, steps=2 if options.dry_run else 4 + work)
    calibration, verification, wrote = None, None, ""
    next_steps = ["inject: the same command without --dry-run"]
    if not options.dry_run:
        calibration, verification, wrote, next_steps = _carry_out(options, prepared, plan, step)
    from rich.text import Text

    from simam_inject.reporting.plans import plan_to_dict, render_plan, render_verification

    strength = "" if options.strength == 1.0 else f", strength {options.strength:g}"
    view: list[Any] = [Text(prepared.heading(plan, strength), "bold")]
    view += render_plan(plan, applied=not options.dry_run, why=options.why, verbose=options.verbose)
    view += render_verification(verification, verbose=options.verbose) if verification else ()
    view += [str(calibration)] if calibration else ()
    view += [wrote] if wrote else ()
    view += [Text("next:", "bold"), *(f"  {line}" for line in next_steps)]
    ok = verification is None or verification.ok
    data = {
        "model": options.model,
        "source": prepared.built.source,
        "note": prepared.built.note,
        "strength": options.strength,
        "dry_run": options.dry_run,
        **plan_to_dict(plan, verification),
        "calibration": calibration,
        "output": options.output if ok else None,
    }
    return Report(view, data, ok)


def _check_together(options: InjectOptions) -> None:
    """Refuse options that do not go together, before anything is built."""
    for name in ("output", "calibrate"):
        if options.dry_run and getattr(options, name):
            word = name.replace("output", "save")
            raise typer.BadParameter(
                f"--dry-run changes nothing, so there is nothing to {word}", param_hint=f"--{name}"
            )
    suffix = options.output.suffix if options.output else ""
    if options.dynamic and suffix not in EXPORTS[:2]:
        raise typer.BadParameter("--dynamic needs --output x.onnx or x.pt2", param_hint="--dynamic")
    prefix, colon, _ = options.model.partition(":")
    if suffix == ".pt" and not is_yolo_name(options.model) and (not colon or prefix in ("timm", "torchvision")):
        raise _not_yolo(options)


def _not_yolo(options: InjectOptions) -> ModelError:
    return ModelError(
        f"--output: .pt is the checkpoint format of ultralytics, and {options.model} is not an ultralytics model; "
        "use --output FILE.safetensors"
    )


def _carry_out(
    options: InjectOptions, prepared: Prepared, plan: Plan, step: Step
) -> tuple[Calibration | None, Verification, str, list[str]]:
    """Modify the model; what was found, what was exported, and the next steps."""
    from simam_inject.api import verify
    from simam_inject.warmup import calibrate

    step("inserting SimAM")
    prepared.apply(plan, options.strength)
    calibration = None
    if options.calibrate is not None:
        step(f"calibrating on {options.calibrate}")
        calibration = calibrate(prepared.model, batches_of(prepared, options.calibrate))
    step("verifying")
    verification: Verification = prepared.run(verify)
    if not verification.ok:
        return calibration, verification, "", ["do not train this model; please report the lines above and its name"]
    if options.output is not None:
        step(f"saving {options.output}")
    python = f"in Python: from simam_inject import inject; inject(model, {_arguments(options, prepared, plan)})"
    if options.output is not None and options.output.suffix in EXPORTS:
        return calibration, verification, _export(options.output, options.dynamic, prepared), [python]
    return calibration, verification, "", [python, _save(options.output, options, prepared)]


def _export(path: Path, dynamic: bool, prepared: Prepared) -> str:
    """Write `--output` for another runtime, and say what was proven of it."""
    from simam_inject.export import export

    proof = export(prepared.model, path, example_inputs=prepared.inputs, dynamic=dynamic)
    differs = f"its output differs by {proof.difference:.1e} from eager mode ({proof.form})"
    return f"wrote {path}, which has {proof.live} live sites; {differs}"


def _save(path: Path | None, options: InjectOptions, prepared: Prepared) -> str:
    """Write `--output` for PyTorch, and say what to do with it."""
    model = prepared.model
    if path is None:
        return "save: add --output FILE.safetensors"
    if path.suffix == ".pt":  # the checkpoint of ultralytics, which its trainer continues with
        if not hasattr(model, "save"):
            raise _not_yolo(options)
        model.save(str(path))
        return f"train: yolo train model={path} data=..., then simam-inject check best.pt"
    from simam_inject.persist import save

    save(model, path)
    return f"load: from simam_inject.persist import load; load({str(path)!r}, model)"


def _arguments(options: InjectOptions, prepared: Prepared, plan: Plan) -> str:
    """What `inject` takes for the same result: the recipe, as short as it goes, and what is not the default."""
    is_plain = len(options.sources) == 1 and not options.exclude and options.e_lambda is None
    keys = {key: value for key, value in plan.recipe.to_dict().items() if key in ("e_lambda", "rules")}
    arguments = [repr(options.sources[0] if is_plain else keys)]
    inputs = "" if prepared.inputs is None else _as_code(prepared.inputs)
    if inputs not in ("", "torch.rand(1, 3, 224, 224)"):
        arguments.append(f"example_inputs={inputs}")
    return ", ".join([*arguments, *([] if options.strength == 1.0 else [f"strength={options.strength:g}"])])


def _as_code(value: Any) -> str:
    """Example inputs as Python."""
    if not isinstance(value, list | tuple):
        return f"torch.rand{tuple(value.shape)}"
    inner = ", ".join(map(_as_code, value))
    return f"[{inner}]" if isinstance(value, list) else inner if len(value) == 1 else f"({inner})"
