"""`simam-inject MODEL`, and `simam-inject report`: apply SimAM, verify it, and say what was done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from simam_inject.cli.options import EXPORTS, InjectOptions, ReportOptions, StrengthOptions
from simam_inject.cli.preparing import (
    Prepared,
    batches_of,
    images_in,
    library_of,
    make_plan,
    selectors,
)
from simam_inject.cli.program import Outcome, Step
from simam_inject.errors import ModelError, VerificationError

if TYPE_CHECKING:
    from simam_inject.planning.plan import Plan
    from simam_inject.verification.checks import Verification

_NO_CHECKPOINT = ".pt is the checkpoint format of ultralytics"


def inject(options: InjectOptions, step: Step) -> Outcome:
    """Add SimAM to a convolutional network and verify it. state_dict keys do not change; --output saves the result.

    Exit codes: 0 done, 1 nothing matched or verification failed, 2 bad usage, recipe, model or file.
    """
    _check_options(options)
    files = images_in(options.calibrate) if options.calibrate is not None else []
    prepared, plan = make_plan(options, step, options.strength)
    from simam_inject import calibrate
    from simam_inject.reporting.plans import plan_to_dict, render_plan, render_verification

    calibration, verification, written = None, None, []
    if not options.dry_run:
        plan, verification = _carry_out(prepared, plan, options, step)
    if files:
        step("calibrating")
        calibration = calibrate(prepared.model, batches_of(prepared, files))
        plan, verification = _as_it_is(prepared, plan), _verify(prepared)
    if options.output is not None:
        step(f"writing {options.output}")
        written = [_write(prepared, options.output, dynamic=options.dynamic)]
    parts = [
        heading(prepared, plan, options.strength),
        *render_plan(plan, applied=not options.dry_run, verbose=options.verbose, why=options.why),
        *(render_verification(verification, verbose=options.verbose) if verification is not None else ()),
        *str(calibration or "").splitlines(),
        *written,
        "next:",
        *_next_steps(prepared, plan, options),
    ]
    data = {
        "model": prepared.built.name,
        "source": prepared.built.source,
        "note": prepared.built.note,
        "strength": options.strength,
        "dry_run": options.dry_run,
        **plan_to_dict(plan, verification),
        "calibration": None if calibration is None else asdict(calibration),
        "output": None if options.output is None else str(options.output),
    }
    return Outcome(parts, data)


def report(options: ReportOptions, step: Step) -> Outcome:
    """Write one self-contained HTML page about an injection: the network drawn, sites, skips, cost, checks, recipe."""
    prepared, plan = make_plan(options, step, options.strength)
    plan, verification = _carry_out(prepared, plan, options, step)
    step("writing the page")
    from simam_inject.reporting.page import render_page

    text = render_page(plan, verification, heading=heading(prepared, plan, options.strength))
    options.html.write_text(text, encoding="utf-8")
    sites = "1 site" if len(plan.placed) == 1 else f"{len(plan.placed)} sites"
    first = str(verification).partition("\n")[0]
    return Outcome([f"wrote {options.html}: {sites}, {first}"], {"html": str(options.html), "ok": True})


def heading(prepared: Prepared, plan: Plan, strength: float = 1.0) -> str:
    """The model, the recipe, and which weights the model has."""
    more = f", strength {strength:g}" if strength != 1 else ""
    return f"{prepared.built.name}, {plan.recipe.name}{more} ({prepared.built.note})"


def _carry_out(prepared: Prepared, plan: Plan, options: StrengthOptions, step: Step) -> tuple[Plan, Verification]:
    """Apply and verify a plan, as `simam_inject.inject` does; what was in the model before is verified, too."""
    from simam_inject import api, set_strength

    step("applying and verifying")
    plan, verification = api.carry_out(prepared.model, plan)
    if options.strength != 1:
        set_strength(prepared.model, options.strength)
    return _as_it_is(prepared, plan), verification or _verify(prepared)


def _verify(prepared: Prepared) -> Verification:
    from simam_inject import verify

    found = verify(prepared.model, example_inputs=prepared.inputs)
    if not found.ok:
        raise VerificationError(f"{found}\ndo not train this model")
    return found


def _as_it_is(prepared: Prepared, plan: Plan) -> Plan:
    """The plan with the strengths and gains that the sites have now."""
    from simam_inject import injected

    now = {one.module: one for one in injected(prepared.model)}
    insertions, present = (tuple(now[one.module] for one in part) for part in (plan.insertions, plan.present))
    return replace(plan, insertions=insertions, present=present)


def _check_options(options: InjectOptions) -> None:
    """Refuse options that do not go together, before anything large is imported."""
    suffix = options.output.suffix if options.output is not None else ""
    if options.dry_run and (options.output is not None or options.calibrate is not None):
        raise ModelError("--dry-run cannot be combined with --output or --calibrate")
    if options.strength == 0 and suffix in EXPORTS:
        raise ModelError("--strength 0 leaves nothing of SimAM in an exported file")
    if options.dynamic and suffix not in (".onnx", ".pt2"):
        raise ModelError("--dynamic needs --output x.onnx or x.pt2")
    if suffix == ".pt" and library_of(options.model) in ("torchvision", "timm"):
        raise ModelError(f"{_NO_CHECKPOINT}; save {options.model} as .safetensors")


def _write(prepared: Prepared, path: Path, *, dynamic: bool) -> str:
    """Save or export the model; the line that says so."""
    if path.suffix in EXPORTS:
        from simam_inject.export import export

        done = export(prepared.model, path, example_inputs=prepared.inputs, dynamic=dynamic)
        sites = "1 live site" if done.live == 1 else f"{done.live} live sites"
        distance = f"its output differs by {done.difference:.1e} from eager mode"
        return f"wrote {path}, which has {sites}; {distance} ({done.form})"
    if path.suffix == ".safetensors":
        from simam_inject.persist import save

        save(prepared.model, path)
    elif hasattr(prepared.model, "save"):
        prepared.model.save(path)
    else:
        raise ModelError(f"{_NO_CHECKPOINT}, and {prepared.built.name} is not a YOLO object; save it as .safetensors")
    return f"wrote {path}"


def _next_steps(prepared: Prepared, plan: Plan, options: InjectOptions) -> Iterator[str]:
    if options.dry_run:
        yield "  inject: the same command without --dry-run"
        return
    parts = selectors(options)
    code = repr(parts[0] if len(parts) == 1 else plan.recipe.to_dict())
    if len(parts) == 1:  # otherwise the recipe contains both
        code += f", exclude={options.exclude}" if options.exclude else ""
        code += f", e_lambda={options.e_lambda}" if options.e_lambda is not None else ""
    code += prepared.code + (f", strength={options.strength:g}" if options.strength != 1 else "")
    yield f"  in Python: from simam_inject import inject; inject(model, {code})"
    suffix = options.output.suffix if options.output is not None else ""
    if not suffix:
        yield f"  save: add --output FILE{'.pt' if prepared.built.source == 'ultralytics' else '.safetensors'}"
    elif suffix == ".pt":
        yield f"  train: yolo train model={options.output} data=..., then simam-inject check best.pt"
    elif suffix == ".safetensors":
        yield f"  load: from simam_inject.persist import load; load({str(options.output)!r}, model)"
