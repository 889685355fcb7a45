"""`simam-inject MODEL`, and `simam-inject report`: apply SimAM, verify it, and say what was done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simam_inject.cli.options import EXPORTS, InjectOptions, RecipeOptions, ReportOptions
from simam_inject.cli.preparing import Prepared, batches_of, check_model, compose_recipe, images_in, make_plan, prepare
from simam_inject.cli.program import Report, Step
from simam_inject.errors import ModelError, VerificationError

if TYPE_CHECKING:
    from simam_inject.planning.plan import Plan
    from simam_inject.planning.records import Verification
    from simam_inject.planning.tables import Table
    from simam_inject.recipe import Recipe
    from simam_inject.warmup import Calibration


_NO_CHECKPOINT = ".pt is the checkpoint format of ultralytics"


def inject(options: InjectOptions, step: Step) -> Report:
    """Add SimAM attention to a convolutional network, in place, and verify it; state_dict keys do not change.

    Exit codes: 0 done, 1 nothing matched or verification failed, 2 bad usage, recipe, model or file.
    """
    recipe = compose_recipe(options)
    _check_output(options)
    files = images_in(options.calibrate) if options.calibrate is not None else []
    prepared = prepare(options, step)
    step("planning")
    plan = make_plan(prepared, recipe, options, options.strength)
    calibration, verification, written = None, None, ""
    if not options.dry_run:
        plan, verification = carry_out(prepared, plan, options.strength, step)
    if files:
        step("calibrating")
        calibration = _calibrate(prepared, files)
        plan, verification = _as_it_is(plan, prepared), verify(prepared)
    if options.output is not None:
        step(f"writing {options.output}")
        written = _write(prepared, options.output, dynamic=options.dynamic)

    def parts() -> Iterator[Table | str]:
        from simam_inject.reporting.plans import render_plan, render_verification

        yield heading(prepared, recipe, options)
        yield from render_plan(plan, applied=not options.dry_run, verbose=options.verbose, why=options.why)
        if verification is not None:
            yield from render_verification(verification, verbose=options.verbose)
        yield from str(calibration).splitlines() if calibration is not None else ()
        yield from [written] if written else ()
        yield "next:"
        yield from _next_steps(prepared, options, recipe)

    return Report(parts(), _to_dict(prepared, plan, options, verification, calibration))


def report(options: ReportOptions, step: Step) -> Report:
    """Write one self-contained HTML page about an injection: the network drawn, sites, skips, cost, checks, recipe."""
    recipe = compose_recipe(options)
    prepared = prepare(options, step)
    step("planning")
    plan = make_plan(prepared, recipe, options, options.strength)
    plan, verification = carry_out(prepared, plan, options.strength, step)
    step("writing the page")
    from simam_inject.reporting.page import render_page

    text = render_page(plan, verification, heading=heading(prepared, recipe, options))
    options.html.write_text(text, encoding="utf-8")
    sites = "1 site" if len(plan.placed) == 1 else f"{len(plan.placed)} sites"
    first = str(verification).partition("\n")[0]
    return Report([f"wrote {options.html}: {sites}, {first}"], {"html": str(options.html), "ok": verification.ok})


def heading(prepared: Prepared, recipe: Recipe, options: RecipeOptions) -> str:
    """The model, the recipe, and which weights the model has."""
    strength = getattr(options, "strength", 1.0)
    words = [prepared.built.name, recipe.name, *([f"strength {strength:g}"] if strength != 1 else [])]
    return f"{', '.join(words)} ({prepared.built.note})"


def carry_out(prepared: Prepared, plan: Plan, strength: float, step: Step) -> tuple[Plan, Verification]:
    """Apply and verify a plan, as `simam_inject.inject` does; what was in the model before is verified, too.

    Raises:
        VerificationError: a check failed.
    """
    from simam_inject import api, set_strength

    step("applying and verifying")
    plan, verification = api.carry_out(prepared.built.model, plan)
    if strength != 1:
        set_strength(prepared.built.model, strength)
    return _as_it_is(plan, prepared), verification or verify(prepared)


def verify(prepared: Prepared) -> Verification:
    """The checks of a model that has its sites.

    Raises:
        VerificationError: one failed.
    """
    from simam_inject import api

    found = api.verify(prepared.built.model, example_inputs=prepared.inputs)
    if not found.ok:
        raise VerificationError(f"{found}\ndo not train this model; nothing was saved")
    return found


def _as_it_is(plan: Plan, prepared: Prepared) -> Plan:
    """The plan with the strengths and gains that the sites have now."""
    from simam_inject import injected

    now = {one.module: one for one in injected(prepared.built.model)}
    insertions, present = (tuple(now[one.module] for one in part) for part in (plan.insertions, plan.present))
    return replace(plan, insertions=insertions, present=present)


def _check_output(options: InjectOptions) -> None:
    """Refuse options that do not go together, before anything large is imported."""
    suffix = options.output.suffix if options.output is not None else ""
    if options.dry_run and (options.output is not None or options.calibrate is not None):
        raise ModelError("--dry-run changes nothing, so there is nothing to save or to calibrate")
    if options.dynamic and suffix not in (".onnx", ".pt2"):
        raise ModelError("--dynamic needs --output x.onnx or x.pt2")
    if suffix == ".pt" and check_model(options.model) in ("torchvision", "timm"):
        raise ModelError(f"{_NO_CHECKPOINT}; save {options.model} as .safetensors")


def _calibrate(prepared: Prepared, files: list[Path]) -> Calibration:
    from simam_inject import calibrate

    return calibrate(prepared.built.model, batches_of(prepared, files))


def _write(prepared: Prepared, path: Path, *, dynamic: bool) -> str:
    """Save or export the model; the line that says so."""
    model = prepared.built.model
    if path.suffix in EXPORTS:
        from simam_inject.export import export

        done = export(model, path, example_inputs=prepared.inputs, dynamic=dynamic)
        sites = "1 live site" if done.live == 1 else f"{done.live} live sites"
        distance = f"its output differs by {done.difference:.1e} from eager mode"
        return f"wrote {path}, which has {sites}; {distance} ({done.form})"
    if path.suffix == ".safetensors":
        from simam_inject.persist import save

        save(model, path)
    elif hasattr(model, "save"):
        model.save(path)
    else:
        raise ModelError(f"{_NO_CHECKPOINT}, and {prepared.built.name} is no YOLO object; save it as .safetensors")
    return f"wrote {path}"


def _next_steps(prepared: Prepared, options: InjectOptions, recipe: Recipe) -> Iterator[str]:
    if options.dry_run:
        yield "  inject: the same command without --dry-run"
        return
    parts = [*filter(None, [options.recipe]), *(f"after {x}" for x in options.after)]
    parts += [f"before {x}" for x in options.before]
    code = repr(parts[0] if len(parts) == 1 else recipe.to_dict())
    if len(parts) == 1 and options.exclude:
        code += f", exclude={options.exclude!r}"
    if len(parts) == 1 and options.e_lambda is not None:
        code += f", e_lambda={options.e_lambda!r}"
    code += prepared.code + (f", strength={options.strength:g}" if options.strength != 1 else "")
    yield f"  in Python: from simam_inject import inject; inject(model, {code})"
    suffix = "" if options.output is None else options.output.suffix
    if not suffix:
        yield f"  save: add --output FILE{'.pt' if prepared.built.source == 'ultralytics' else '.safetensors'}"
    elif suffix == ".pt":
        yield f"  train: yolo train model={options.output} data=..., then simam-inject check best.pt"
    elif suffix == ".safetensors":
        yield f"  load: from simam_inject.persist import load; load({str(options.output)!r}, model)"


def _to_dict(
    prepared: Prepared,
    plan: Plan,
    options: InjectOptions,
    verification: Verification | None,
    calibration: Calibration | None,
) -> dict[str, Any]:
    from simam_inject.reporting.plans import plan_to_dict

    return {
        "model": prepared.built.name,
        "source": prepared.built.source,
        "note": prepared.built.note,
        "strength": options.strength,
        "dry_run": options.dry_run,
        **plan_to_dict(plan, verification),
        "calibration": None if calibration is None else asdict(calibration),
        "output": None if options.output is None else str(options.output),
    }
