"""`simam-inject MODEL`, and `simam-inject report`: apply SimAM, verify it, and say what was done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simam_inject.cli.options import InjectOptions, ReportOptions, StrengthOptions
from simam_inject.cli.preparing import batches_of, images_in, library_of, make_plan, selectors
from simam_inject.cli.program import Outcome, Step
from simam_inject.errors import ModelError, VerificationError, plural
from simam_inject.zoo import ZooModel
from simam_inject.zoo.names import EXPORTS

if TYPE_CHECKING:
    from simam_inject.planning.plan import Plan
    from simam_inject.verification.checks import Verification
    from simam_inject.warmup.calibration import Calibration

_NO_CHECKPOINT = ".pt is the checkpoint format of ultralytics"


def inject(options: InjectOptions, step: Step) -> Outcome:
    """Add SimAM to a convolutional network and verify it. state_dict keys do not change; --output saves the result.

    Exit codes: 0 done, 1 nothing matched or verification failed, 2 bad usage, recipe, model or file.
    """
    _check_options(options)
    files = images_in(options.calibrate) if options.calibrate is not None else []
    built, plan = make_plan(options, step, options.new_strength)
    from simam_inject.reporting.plans import plan_to_dict, render_plan

    verification, calibration, written, exported = None, None, [], None
    if not options.dry_run:
        plan, verification, calibration = _carry_out(built, plan, options, step, files)
    if options.output is not None:
        step(f"writing {options.output}")
        line, exported = _write(built, options.output, dynamic=options.dynamic)
        written = [line]
    passed = [f"  {check}" for check in verification.checks if check.ok] if verification and options.verbose else []
    parts = [
        heading(built, plan),
        *render_plan(plan, applied=not options.dry_run, verbose=options.verbose, why=options.why),
        *str(verification or "").splitlines(),
        *passed,
        *str(calibration or "").splitlines(),
        *written,
        *(["next:", *steps] if (steps := [*_next_steps(built, plan, options)]) else ()),
    ]
    data = {
        "model": built.name,
        "source": built.source,
        "note": built.note,
        "strength": _strength(plan),
        "dry_run": options.dry_run,
        **plan_to_dict(plan, verification),
        "calibration": None if calibration is None else asdict(calibration),
        "output": None if options.output is None else str(options.output),
        "export": exported,
    }
    return Outcome(parts, data)


def report(options: ReportOptions, step: Step) -> Outcome:
    """Write one self-contained HTML page about an injection: the network drawn, sites, skips, cost, checks, recipe."""
    built, plan = make_plan(options, step, options.new_strength)
    plan, verification, _ = _carry_out(built, plan, options, step)
    step("writing the page")
    from simam_inject.persist.files import in_one_step
    from simam_inject.reporting.page import render_page

    text = render_page(plan, verification, heading=heading(built, plan))
    with in_one_step(options.html) as file:
        file.write_text(text, encoding="utf-8")
    first = str(verification).partition("\n")[0]
    summary = f"wrote {options.html}: {plural(len(plan.placed), 'site')}, {first}"
    return Outcome([summary], {"html": str(options.html), "ok": True})


def heading(built: ZooModel, plan: Plan) -> str:
    """The model, the recipe, and which weights the model has."""
    strength = _strength(plan)
    more = f", strength {strength:g}" if strength not in (None, 1) else ""
    return f"{built.name}, {plan.recipe.name}{more} ({built.note})"


def _strength(plan: Plan) -> float | None:
    """That of all sites; None if they differ."""
    found = {site.strength for site in plan.placed}
    return found.pop() if len(found) == 1 else None


def _carry_out(
    built: ZooModel, plan: Plan, options: StrengthOptions, step: Step, files: Sequence[Path] = ()
) -> tuple[Plan, Verification, Calibration | None]:
    """Apply, calibrate and verify a plan; sites that the model had before get the strength and are verified, too."""
    from simam_inject import api, calibrate, set_strength

    step("applying and verifying")
    plan, verification = api.carry_out(built.model, plan)
    if options.strength is not None:
        set_strength(built.model, options.strength)
    calibration = None
    if files:
        step("calibrating")
        calibration, verification = calibrate(built.model, batches_of(built, [*files])), None
    if verification is None:
        verification = api.verify(built.model, example_inputs=built.example_inputs)
    if not verification.ok:
        raise VerificationError(f"{verification}\ndo not train this model")
    now = {one.module: one for one in api.injected(built.model)}  # with their strengths and gains
    insertions, present = (tuple(now[one.module] for one in part) for part in (plan.insertions, plan.present))
    return replace(plan, insertions=insertions, present=present), verification, calibration


def _check_options(options: InjectOptions) -> None:
    """Refuse options that do not go together, before anything large is imported."""
    suffix = options.output.suffix if options.output is not None else ""
    if options.dry_run and (options.output is not None or options.calibrate is not None):
        raise ModelError("--dry-run cannot be combined with --output or --calibrate")
    if options.strength == 0 and suffix in EXPORTS:
        raise ModelError("--strength 0 leaves nothing of SimAM in an exported file")
    if options.dynamic and suffix not in (".onnx", ".pt2"):
        raise ModelError("--dynamic needs --output x.onnx or x.pt2")
    if suffix == ".pt" and library_of(options) in ("torchvision", "timm"):
        raise ModelError(f"{_NO_CHECKPOINT}; save {options.model} as .safetensors")


def _write(built: ZooModel, path: Path, *, dynamic: bool) -> tuple[str, dict[str, Any] | None]:
    """Save or export the model; the line that says so, and facts about an export."""
    if path.suffix in EXPORTS:
        from simam_inject.export import export

        done = export(built.model, path, example_inputs=built.example_inputs, dynamic=dynamic)
        return f"wrote {done}", {"live": done.live, "difference": done.difference, "form": done.form}
    if path.suffix == ".safetensors":
        from simam_inject.persist import save

        save(built.model, path)
    elif hasattr(built.model, "save"):
        from simam_inject.persist.files import in_one_step

        with in_one_step(path) as file:
            built.model.save(file)
    else:
        raise ModelError(f"{_NO_CHECKPOINT}, and {built.name} is not a YOLO object; save it as .safetensors")
    return f"wrote {path}", None


def _next_steps(built: ZooModel, plan: Plan, options: InjectOptions) -> Iterator[str]:
    if options.dry_run:
        yield "  inject: the same command without --dry-run"
        return
    parts = selectors(options)
    code = repr(parts[0] if len(parts) == 1 else plan.recipe.to_dict())
    if len(parts) == 1:  # otherwise the recipe contains both
        code += f", exclude={options.exclude}" if options.exclude else ""
        code += f", e_lambda={options.e_lambda}" if options.e_lambda is not None else ""
    code += _example_code(built) + (f", strength={options.new_strength:g}" if options.new_strength != 1 else "")
    if parts:  # otherwise the model has the sites
        names, then = ("calibrate, inject", "; calibrate(model, batches)") if options.calibrate else ("inject", "")
        yield f"  in Python: from simam_inject import {names}; inject(model, {code}){then}"
    suffix = options.output.suffix if options.output is not None else ""
    if not suffix:
        yield f"  save: add --output FILE{'.pt' if built.source == 'ultralytics' else '.safetensors'}"
    elif suffix == ".pt":
        yield f"  train: yolo train model={options.output} data=..., then simam-inject check best.pt"
    elif suffix == ".safetensors":
        yield f"  load: from simam_inject.persist import load; load({str(options.output)!r}, model)"


def _example_code(built: ZooModel) -> str:
    """The argument `example_inputs`, after a comma; "" where the network declares these inputs itself."""
    from simam_inject.adapters import network_of
    from simam_inject.dataflow.example import declared_size

    shapes = built.input_shapes
    if not shapes or shapes == ((1, *declared_size(network_of(built.model))),):
        return ""
    tensors = ", ".join(f"torch.rand({', '.join(map(str, shape))})" for shape in shapes)
    whole = f"[{tensors}]" if built.takes_list else tensors if len(shapes) == 1 else f"({tensors})"
    return f", example_inputs={whole}"
