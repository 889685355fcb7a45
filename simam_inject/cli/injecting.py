"""The main job: build, plan, insert, calibrate, verify, save, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from simam_inject.cli.options import EXPORTS, InjectOptions
from simam_inject.cli.preparing import apply_plan, as_inserted, batches_of, describe, make_plan, run_example
from simam_inject.cli.program import Report, Step
from simam_inject.errors import ModelError
from simam_inject.zoo import ZooModel
from simam_inject.zoo.names import find_library

if TYPE_CHECKING:
    from simam_inject import Plan
    from simam_inject.planning.records import Verification
    from simam_inject.warmup import Calibration


def inject(options: InjectOptions, step: Step) -> Report:
    """Put SimAM into MODEL, verify it, and report every site."""
    _check_together(options)
    work = (options.calibrate is not None) + (options.output is not None)
    built, plan = make_plan(options, step, steps=2 if options.dry_run else 4 + work)
    calibration, verification, wrote = None, None, None
    next_steps = ["inject: the same command without --dry-run"]
    if not options.dry_run:
        calibration, verification = _insert(options, built, plan, step)
        plan = as_inserted(built, plan)
        next_steps = ["do not train this model; please report the lines above and its name"]
    if verification is not None and verification.ok:
        if options.output is not None:
            step(f"saving {options.output}")
        wrote, next_steps = _save(options, built, plan)

    from rich.text import Text

    from simam_inject.reporting.plans import plan_to_dict, render_plan, render_verification

    strength = "" if options.strength == 1.0 else f", strength {options.strength:g}"
    view: list[Any] = [Text(describe(built, plan, strength), "bold")]
    view += render_plan(plan, applied=not options.dry_run, why=options.why, verbose=options.verbose)
    view += render_verification(verification, verbose=options.verbose) if verification else ()
    view += [str(found) for found in (calibration, wrote) if found is not None]
    view += [Text("next:", "bold"), *(f"  {line}" for line in next_steps)]
    ok = verification is None or verification.ok
    data = {
        "model": options.model,
        "source": built.source,
        "note": built.note,
        "strength": options.strength,
        "dry_run": options.dry_run,
        **plan_to_dict(plan, verification),
        "calibration": calibration,
        "output": options.output if ok else None,
    }
    return Report(view, data, ok)


def _check_together(options: InjectOptions) -> None:
    """Refuse options that do not go together, before anything is built."""
    for name, verb in (("output", "save"), ("calibrate", "calibrate")):
        if options.dry_run and getattr(options, name):
            raise typer.BadParameter(
                f"--dry-run changes nothing, so there is nothing to {verb}", param_hint=f"--{name}"
            )
    suffix = options.output.suffix if options.output else ""
    if options.dynamic and suffix not in EXPORTS[:2]:
        raise typer.BadParameter("--dynamic needs --output x.onnx or x.pt2", param_hint="--dynamic")
    if suffix == ".pt" and find_library(options.model) in ("timm", "torchvision"):
        raise _not_yolo(options)


def _not_yolo(options: InjectOptions) -> ModelError:
    return ModelError(
        f"--output: .pt is the checkpoint format of ultralytics, and {options.model} is not an ultralytics model; "
        "use --output FILE.safetensors"
    )


def _insert(options: InjectOptions, built: ZooModel, plan: Plan, step: Step) -> tuple[Calibration | None, Verification]:
    """Modify the model, and verify it."""
    from simam_inject.api import verify
    from simam_inject.warmup import calibrate

    step("inserting SimAM")
    apply_plan(built, plan, options.strength)
    calibration = None
    if options.calibrate is not None:
        step(f"calibrating on {options.calibrate}")
        calibration = calibrate(built.model, batches_of(built, options.calibrate))
    step("verifying")
    return calibration, run_example(verify, built)


def _save(options: InjectOptions, built: ZooModel, plan: Plan) -> tuple[str | None, list[str]]:
    """Write `--output` if it is given: what there is to report about the file, and the next steps."""
    path = options.output
    python = f"in Python: from simam_inject import inject; inject(model, {_arguments(options, built, plan)})"
    if path is None:
        return None, [python, "save: add --output FILE.safetensors"]
    if path.suffix in EXPORTS:
        from simam_inject.export import export

        proof = export(built.model, path, example_inputs=built.example_inputs, dynamic=options.dynamic)
        differs = f"its output differs by {proof.difference:.1e} from eager mode ({proof.form})"
        return f"wrote {path}, which has {proof.live} live sites; {differs}", [python]
    if path.suffix == ".pt":  # the checkpoint of ultralytics, from which its trainer continues
        if not hasattr(built.model, "save"):
            raise _not_yolo(options)
        built.model.save(str(path))
        return None, [python, f"train: yolo train model={path} data=..., then simam-inject check best.pt"]
    from simam_inject.persist import save

    save(built.model, path)
    return None, [python, f"load: from simam_inject.persist import load; load({str(path)!r}, model)"]


def _arguments(options: InjectOptions, built: ZooModel, plan: Plan) -> str:
    """What `inject` takes for the same result: the recipe, as short as possible, and what is not the default."""
    from simam_inject.adapters import network_of
    from simam_inject.dataflow.example import declared_size

    is_plain = len(options.sources) == 1 and not options.exclude and options.e_lambda is None
    keys = {key: value for key, value in plan.recipe.to_dict().items() if key in ("e_lambda", "rules")}
    arguments = [repr(options.sources[0] if is_plain else keys)]
    if built.input_shapes not in ((), ((1, *declared_size(network_of(built.model))),)):
        tensors = ", ".join(f"torch.rand{shape}" for shape in built.input_shapes)
        code = f"[{tensors}]" if built.takes_list else f"({tensors})" if len(built.input_shapes) > 1 else tensors
        arguments.append(f"example_inputs={code}")
    return ", ".join([*arguments, *([] if options.strength == 1.0 else [f"strength={options.strength:g}"])])
