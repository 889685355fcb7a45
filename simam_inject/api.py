"""The public functions inject, plan, injected, eject, bypass and verify. The only file that uses all stages.

recipe -> dataflow -> matching -> planning -> editing -> verification
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from simam_inject.adapters import adapter_of, network_of, update
from simam_inject.attention import SimAM
from simam_inject.attention.arguments import check_number
from simam_inject.dataflow.anatomy import Anatomy
from simam_inject.dataflow.example import example_of, shapes_of
from simam_inject.dataflow.sites import Dataflow
from simam_inject.dataflow.survey import survey_model
from simam_inject.editing.attach import all_or_nothing, attach, attended_in, check_edits, detach, restorer, strip
from simam_inject.editing.bypass import bypassed
from simam_inject.editing.presence import presence_of, presences_in
from simam_inject.errors import ModelError, NoMatchError, RecipeError, VerificationError
from simam_inject.matching.explain import explain_unmatched_glob
from simam_inject.matching.hits import Skip
from simam_inject.matching.match import match
from simam_inject.modules import ModelT, check_has_data, check_injectable, check_module, unwrapped
from simam_inject.planning.insertions import PRESENT, Insertion
from simam_inject.planning.plan import Insertions, Plan
from simam_inject.planning.planner import decide
from simam_inject.recipe import Recipe, RecipeLike, adjusted, load_recipe
from simam_inject.recipe.grammar import as_tuple
from simam_inject.recipe.names import Glob
from simam_inject.verification.checks import Verification, tensor_marks
from simam_inject.verification.verifier import SAME_WAY, check_model, remembered_example


def inject(
    model: ModelT,
    recipe: RecipeLike,
    *,
    example_inputs: Any = None,
    verify: bool = True,
    e_lambda: float | None = None,
    exclude: Sequence[str] = (),
    strength: float = 1.0,
    attention: Callable[[int], nn.Module] | None = None,
) -> ModelT:
    """Apply SimAM at the sites that a recipe selects.

    Modifies the model in place and returns it. If an error is raised, the model is unchanged. All code that
    `torch.compile` made in this process is discarded, and compiled again when it is called.

    Args:
        model: any `nn.Module`, or an ultralytics `YOLO`.
        recipe: a `Recipe`, a dict, the name of a shipped recipe, a path to a YAML file, or a one-line selector
            ("after bottleneck.conv2").
        example_inputs: a tensor, a tuple (positional) or a dict (keywords) for one forward; None uses the input size
            that the model declares, else 1 x 3 x 224 x 224; or, where the model cannot be run on these, the shapes that
            an earlier `inject` was given.
        verify: check afterwards that only the selected sites changed and that every SimAM is live; see `verify`.
        e_lambda: lambda of every rule; overrides the recipe.
        exclude: globs on dotted paths; excluded from every rule, in addition to the rule's own `exclude`.
        strength: from 0 (each SimAM is the identity) to 1; see `set_strength` and `Ramp`.
        attention: returns another attention module for a number of channels, e.g. `timm.layers.SEModule`, to be used at
            the same sites. Its parameters appear in the `state_dict` under the site's name.

    Raises:
        RecipeError: the recipe, `exclude` or `strength` is invalid.
        ModelError: the model cannot be run on the example inputs, or cannot be modified.
        NoMatchError: a rule, or a glob of `exclude`, matches nothing.
        VerificationError: a check failed; the model is unchanged.

    Example:
        >>> import torchvision
        >>> model = inject(torchvision.models.resnet18(), "after basicblock.conv2", verify=False)
        >>> len(injected(model))
        8
    """
    check_number("strength", strength, RecipeError)
    if attention is not None and (isinstance(attention, nn.Module) or not callable(attention)):
        raise ModelError(f"attention must be a function that returns a module for n channels; found {attention!r:.60}")
    if attention is not None and strength != 1.0:
        raise ModelError(f"strength={strength:g} applies to SimAM only; leave it out with attention=...")
    resolved = adjusted(load_recipe(recipe), exclude, e_lambda)
    check_edits(network_of(model))
    planned = make_plan(model, resolved, example_inputs, strength, attention, exclude=("exclude", exclude))
    _check_present(model, planned, attention)
    there = [skip.path for skip in planned.skips if skip.reason == PRESENT]
    others = sum(site.path in there and site.strength != strength for site in planned.present)
    if planned.is_done or others:
        sites = f"nothing to inject: all {len(there)} sites" if planned.is_done else f"{others} of the sites"
        warnings.warn(f"{sites} already have SimAM; their strength is unchanged (see set_strength)", stacklevel=2)
    _, found = carry_out(model, planned, verify=verify)
    if found is not None and found.warning:
        warnings.warn(found.warning, stacklevel=2)
    return model


def _check_present(model: nn.Module, planned: Plan[Any], attention: Callable[[int], nn.Module] | None) -> None:
    """Refuse what would leave another attention module at the sites than the one that is asked for."""
    there = {skip.path for skip in planned.skips if skip.reason.startswith(PRESENT)}
    kinds = [
        type(entry.attention).__name__
        for entry in attended_in(network_of(model))
        if attention is not None or (entry.site.path in there and not isinstance(entry.attention, SimAM))
    ]
    if kinds:
        names = " and ".join(dict.fromkeys(kinds))
        raise ModelError(f"the model already has attention at its sites ({names}); call eject(model) first")


def carry_out(model: nn.Module, planned: Plan[Any], *, verify: bool = True) -> tuple[Plan, Verification | None]:
    """Apply a plan and verify the model, which is restored if a check fails.

    If the forward depends on values, which its recording does not have, and runs other modules than were recorded, the
    model is planned again with values.

    Returns:
        The plan that was applied, and the checks; None instead of them without `verify`, or if there was nothing to do.

    Raises:
        NoMatchError: the plan has no effect.
        VerificationError: a check failed.
    """
    found = _apply_and_verify(model, planned, verify)
    if found is not None and found.failed and found.failed[0].name == SAME_WAY:
        assert planned.replan is not None
        planned = planned.replan()
        found = _apply_and_verify(model, planned, verify)
    if found is not None and not found.ok:
        details = "; ".join(f"{check.name}: {check.detail}" for check in found.failed)
        raise VerificationError(f"verification failed, and the model was restored. {details}")
    return planned, found


def _apply_and_verify(model: nn.Module, planned: Plan, verify: bool) -> Verification | None:
    if planned.is_done:
        return None
    if not planned.insertions:
        raise NoMatchError(planned.why_no_effect())
    network = network_of(model)
    restore = restorer(network)
    marks = tensor_marks(network)
    planned.apply()
    if not verify:
        return None
    recorded = {path for path, count in planned.flow.recording.calls.items() if count}
    found = None
    try:
        found = check_model(network, planned.flow.example, marks, recorded=recorded)
    except BaseException as error:
        error.add_note("raised while the injected model was verified; the model is as it was before")
        raise
    finally:
        if found is None or not found.ok:
            restore()
            update(model)
    return found


def plan(model: ModelT, recipe: RecipeLike, *, example_inputs: Any = None) -> Plan[ModelT]:
    """Return what `inject` would do, without changing the model.

    Modes, buffers, gradients and the random state are preserved; hooks of SimAM that another tool dropped are restored.
    See `inject` for the arguments and errors.

    Example:
        >>> import torchvision
        >>> found = plan(torchvision.models.resnet18(), "paper")
        >>> found.insertions[0].path, found.insertions[0].axes
        ('layer1.0.conv2', 'NCHW')
    """
    return make_plan(model, load_recipe(recipe), example_inputs)


def survey(model: nn.Module, *, example_inputs: Any = None) -> Anatomy:
    """Return every site that a rule can name in the model, ignoring SimAM that was injected. Does not change the model.

    See `plan` for the arguments and errors.
    """
    return _survey(model, example_inputs).anatomy


def injected(model: nn.Module) -> tuple[Insertion, ...]:
    """Return the SimAM sites of a model, in module order; empty for a model without SimAM.

    Example:
        >>> import torchvision
        >>> model = inject(torchvision.models.resnet18(), "paper", verify=False)
        >>> injected(model)[0].module
        'layer1.0.conv2.simam'
    """
    return Insertions(entry.insertion for entry in attended_in(network_of(model)))


def eject(model: ModelT) -> ModelT:
    """Remove every SimAM from a model, or from a part of one (`model.layer1`), in place, and return it; see `inject`.

    Example:
        >>> import torchvision
        >>> model = inject(torchvision.models.resnet18(), "paper", verify=False)
        >>> len(injected(model)), len(injected(eject(model)))
        (8, 0)
    """
    detach(adapter_of(check_module(model)).network(model))  # not `network_of`: no hook has to be restored first
    update(model)
    return model


@contextmanager
def bypass(model: ModelT) -> Iterator[ModelT]:
    """Context manager in which every SimAM returns its input: the model computes what it did before the injection.

    Copies that are made inside are bypassed until it ends; `pickle` and `torch.save` raise a `ModelError` inside.

    Example:
        >>> import torch, torchvision
        >>> model = inject(torchvision.models.resnet18().eval(), "paper", verify=False)
        >>> x = torch.rand(1, 3, 64, 64)
        >>> with bypass(model):
        ...     plain = model(x)
        >>> torch.equal(plain, eject(model)(x))
        True
    """
    with bypassed(network_of(model)):
        yield model


def verify(model: nn.Module, *, example_inputs: Any = None) -> Verification:
    """Check that an injected model computes what it should, without changing it.

    In eval mode, each SimAM runs and the network goes on with its input: the outputs equal those of the original model
    bit for bit. At another input size, small if possible (that of the example where the model takes no other), in eval
    and in train mode, each SimAM returns the formula in float64 of what the original model computes at its site. The
    original goes on with that result, and its outputs equal those of the injected model bit for bit. In train mode,
    gradients pass through each site. A check that cannot be run on this model has `ok=None` and a reason.

    Args:
        model: a model with SimAM, which DDP or `torch.compile` may have wrapped.
        example_inputs: as for `inject`; None uses inputs of the shapes that `inject` was given.

    Raises:
        ModelError: the model has no SimAM or no data, or raises on the example inputs.

    Example:
        >>> import torch, torchvision
        >>> model = inject(torchvision.models.resnet18(), "paper", example_inputs=torch.rand(1, 3, 64, 64))
        >>> verify(model).ok
        True
    """
    network = unwrapped(network_of(model))
    presence = presence_of(network)
    if presence is None:
        part = next(iter(presences_in(network)), None)
        name, where = type(network).__name__, "no SimAM in this model; inject(model, recipe) adds it"
        if part:
            where = f"SimAM was injected into the part {part!r} of this {name}: verify that module"
        elif any(attended_in(network)):
            where = f"SimAM was injected into a model that this {name} or a part of it was in: verify that model"
        raise ModelError(where)
    check_has_data(network)
    remembered = remembered_example(network) if example_inputs is None else None
    return check_model(network, remembered or example_of(network, example_inputs))


def make_plan(
    model: ModelT,
    recipe: Recipe,
    example_inputs: Any,
    strength: float = 1.0,
    attention: Callable[[int], nn.Module] | None = None,
    *,
    exclude: tuple[str, Sequence[str]] = ("exclude", ()),
    with_values: bool = False,
) -> Plan[ModelT]:
    """The plan of `plan`, with the strength and the attention of `inject`.

    Args:
        exclude: globs that were added to every rule and have to match something, after their name in messages.
        with_values: record the forward with real values, on a copy of the model.
    """
    network = network_of(model)
    flow = _survey(model, example_inputs, with_values=with_values)
    name, globs = exclude
    if message := explain_unmatched_glob(name, map(Glob, as_tuple(globs or ())), flow.anatomy):
        raise NoMatchError(message)
    decided: Plan[Any] = decide(recipe, flow, match(recipe, flow.anatomy), injected(network))
    insertions = tuple(replace(insertion, strength=float(strength)) for insertion in decided.insertions)
    apply = partial(_apply, model, _own_modules(network), attention)
    replan = partial(make_plan, model, recipe, example_inputs, strength, attention, with_values=True)
    return replace(decided, insertions=insertions, _apply=apply, replan=replan)


def plan_present(model: nn.Module, recipe: Recipe, example_inputs: Any) -> Plan:
    """The plan that adds nothing to the sites of a model, which `recipe` describes.

    Its rules need not select these sites: some may be of a part that was injected by itself.
    """
    present = injected(model)
    skips = tuple(Skip(site.path, PRESENT, site.rule, hit=True) for site in present)
    return Plan(recipe, (), skips, _survey(model, example_inputs), present)


def _survey(model: nn.Module, example_inputs: Any, *, with_values: bool = False) -> Dataflow:
    network = network_of(model)
    adapter_of(model).check(network)
    check_injectable(network)
    survey = partial(survey_model, network, strip=strip, with_values=with_values)
    try:
        return survey(example_of(network, example_inputs))
    except ModelError:
        remembered = remembered_example(network) if example_inputs is None else None
        if remembered is not None:
            with suppress(ModelError):
                return survey(remembered)
        raise


def _own_modules(network: nn.Module) -> dict[str, int]:
    """Identity of every module, by path, except the injected attention."""
    attention = {id(part) for entry in attended_in(network) if entry.attention for part in entry.attention.modules()}
    return {path: id(module) for path, module in network.named_modules() if id(module) not in attention}


def _apply(
    model: ModelT, modules: dict[str, int], attention: Callable[[int], nn.Module] | None, planned: Plan
) -> ModelT:
    """Apply a plan to its model, which had these modules when it was planned."""
    network = network_of(model)
    check_edits(network)
    if injected(network) != planned.present or _own_modules(network) != modules:
        raise ModelError("the model has changed since the plan was made; call plan again")
    before = [recipe for own in presences_in(network).values() for recipe in own.recipes]
    with all_or_nothing(network):
        if planned.insertions:
            attach(
                network,
                planned.placed,
                recipes=[*before, planned.recipe.to_dict()],
                example=shapes_of(planned.flow.example),
                factory=attention,
                reuse=True,
            )
        update(model)
    return model
