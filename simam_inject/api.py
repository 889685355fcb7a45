"""The public functions: inject, plan, injected, eject, bypass, verify. The one file that knows all stages.

recipe -> dataflow -> matching -> planning -> editing -> verification
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from simam_inject.adapters import adapter_of, network_of, refresh
from simam_inject.attention.arguments import ArgumentError, check_strength
from simam_inject.dataflow.example import Example, example_like, example_of, shapes_of
from simam_inject.dataflow.records import Anatomy
from simam_inject.dataflow.sites import Dataflow
from simam_inject.dataflow.survey import survey_model
from simam_inject.editing.attach import Attended, attach, attended_in, detach
from simam_inject.editing.checking import SiteRecord
from simam_inject.editing.presence import presence_of
from simam_inject.editing.records import record_of
from simam_inject.errors import ModelError, NoMatchError, RecipeError, VerificationError
from simam_inject.matching import match
from simam_inject.planning.plan import Insertions, Plan
from simam_inject.planning.planner import decide
from simam_inject.planning.records import PRESENT, Insertion, Verification
from simam_inject.recipe import Recipe, RecipeLike, load_recipe
from simam_inject.subjects import check_subject
from simam_inject.verification import bypassed, check_model, tensor_marks

ModelT = TypeVar("ModelT", bound=nn.Module)


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
    """Put SimAM where the recipe says. Changes the model in place, all or nothing, and returns the same object.

    Args:
        model: any `nn.Module`, or an ultralytics `YOLO`.
        recipe: a `Recipe`, a dict, the name of a shipped recipe, a path to a YAML file, or a one-line selector
            ("after bottleneck.conv2").
        example_inputs: a tensor, a tuple (positional) or a dict (keywords) for one forward; None uses the input size
            that the model declares, else 1 x 3 x 224 x 224.
        verify: check afterwards that nothing else changed and every SimAM is live; see `verify`.
        e_lambda: lambda of every rule, whatever the recipe says.
        exclude: globs on dotted paths that every rule leaves out, beside its own.
        strength: from 0 (each SimAM is the identity) to 1; see `set_strength` and `Ramp`.
        attention: makes another attention module for a number of channels, e.g. `timm.layers.SEModule`, to be put at
            the same sites. Its parameters appear in the `state_dict` under the site's name.

    Raises:
        RecipeError: the recipe, `exclude` or `strength` is not valid.
        ModelError: the model cannot be run on the example, or not be edited as it is.
        NoMatchError: a rule matches no site.
        VerificationError: a check failed; the model is as it was.

    Example:
        >>> import torchvision
        >>> model = inject(torchvision.models.resnet18(), "after basicblock.conv2", verify=False)
        >>> len(injected(model))
        8
    """
    try:
        strength = check_strength(strength)
    except ArgumentError as error:
        raise RecipeError(str(error)) from None
    resolved = adjusted(load_recipe(recipe), exclude, e_lambda)
    planned = _plan(model, resolved, example_inputs, strength, attention)
    if planned.is_done:
        count = sum(skip.reason == PRESENT for skip in planned.skips)
        warnings.warn(f"nothing to inject: all {count} sites have SimAM already", stacklevel=2)
        return model
    if not planned.insertions:
        raise NoMatchError(no_effect(planned))
    network = network_of(model)
    before = _contents(network)
    marks = tensor_marks(network)
    planned.apply()
    if not verify:
        return model
    try:
        found = check_model(network, planned.flow.example, marks, has_parameters=attention is not None)
    except BaseException:
        _go_back(model, before)
        raise
    if not found.ok:
        _go_back(model, before)
        failed = "; ".join(f"{check.name}: {check.detail}" for check in found.checks if check.ok is False)
        raise VerificationError(f"verification failed, the model is as it was. {failed}")
    return model


def plan(model: nn.Module, recipe: RecipeLike, *, example_inputs: Any = None) -> Plan:
    """Work out what `inject` would do, and touch nothing: modes, buffers, random state and gradients stay as found.

    Args and Raises: as for `inject`, verification aside.

    Example:
        >>> import torchvision
        >>> found = plan(torchvision.models.resnet18(), "paper")
        >>> found.insertions[0].path, found.insertions[0].axes
        ('layer1.0.conv2', 'NCHW')
    """
    return _plan(model, load_recipe(recipe), example_inputs)


def survey(model: nn.Module, *, example_inputs: Any = None) -> Anatomy:
    """Everything that a rule can name in the model, as if nothing had been injected. Touches nothing.

    Args and Raises: as for `plan`, recipes aside.
    """
    network = network_of(model)
    check_subject(network)
    return survey_model(network, example_of(network, example_inputs), detach).anatomy


def injected(model: nn.Module) -> tuple[Insertion, ...]:
    """What is in the model now, in module order; empty for a model without SimAM.

    Example:
        >>> import torchvision
        >>> model = inject(torchvision.models.resnet18(), "paper", verify=False)
        >>> injected(model)[0].module
        'layer1.0.conv2.simam'
    """
    return Insertions(entry.insertion for entry in attended_in(network_of(model)))


def eject(model: ModelT) -> ModelT:
    """Take every SimAM out again: the original modules and hooks, bit for bit. In place; returns the same object."""
    detach(network_of(model))
    adapter = adapter_of(model)
    if adapter is not None:
        adapter.forget(model)
    return model


@contextmanager
def bypass(model: ModelT) -> Iterator[ModelT]:
    """Inside, every SimAM returns its input unchanged; afterwards each is as it was.

    Example:
        >>> import torch, torchvision
        >>> model = inject(torchvision.models.resnet18().eval(), "paper", verify=False)
        >>> x = torch.rand(1, 3, 64, 64)
        >>> with bypass(model):
        ...     plain = model(x)
        >>> torch.equal(plain, eject(model)(x))
        True
    """
    refresh(model)
    try:
        with bypassed(network_of(model)):
            yield model
    finally:
        refresh(model)


def verify(model: nn.Module, *, example_inputs: Any = None) -> Verification:
    """Check an injected model against itself without SimAM. Changes nothing; can be asked at any time.

    The checks: bypassed, it equals the original bit for bit in eval and in train mode; live, it equals forward hooks on
    the original that compute the formula in float64, and each SimAM runs in both modes; state_dict keys and parameters
    are the same; gradients reach through each site. A check that the model does not allow has `ok=None` and says why.

    Args:
        example_inputs: as for `inject`; None uses inputs of the shapes that `inject` was given.

    Raises:
        ModelError: there is no SimAM in the model, or it raises on the example.
    """
    network = network_of(model)
    presence = presence_of(network)
    if presence is None:
        raise ModelError("there is no SimAM in this model; inject(model, recipe) puts it there")
    if example_inputs is None and presence.example is not None:
        example = example_like(network, presence.example)
    else:
        example = example_of(network, example_inputs)
    has_parameters = any(True for entry in attended_in(network) for _ in (entry.attention or network).parameters())
    return check_model(network, example, has_parameters=has_parameters)


def adjusted(recipe: Recipe, exclude: Sequence[str] = (), e_lambda: float | None = None) -> Recipe:
    """The recipe with more left out of every rule, and one lambda for all.

    Raises:
        RecipeError: a glob or the lambda is not valid.
    """
    if not exclude and e_lambda is None:
        return recipe
    data = recipe.to_dict()
    rules = []
    for rule in data["rules"]:
        own = rule.get("exclude", [])
        excluded = [*([own] if isinstance(own, str) else own), *([exclude] if isinstance(exclude, str) else exclude)]
        changed = {**rule, "exclude": excluded} if excluded else dict(rule)
        if e_lambda is not None:
            changed.pop("e_lambda", None)
        rules.append(changed)
    return Recipe.from_dict({**data, "rules": rules, **({} if e_lambda is None else {"e_lambda": e_lambda})})


def _plan(
    model: nn.Module,
    recipe: Recipe,
    example_inputs: Any,
    strength: float = 1.0,
    attention: Callable[[int], nn.Module] | None = None,
) -> Plan:
    network = network_of(model)
    check_subject(network)
    present = injected(network)
    flow = survey_model(network, example_of(network, example_inputs), detach)
    decision = decide(recipe, flow, match(recipe, flow.anatomy), present)
    modules = {path: id(module) for path, module in _own_modules(network)}

    def apply(planned: Plan) -> nn.Module:
        if (
            injected(network) != planned.present
            or {path: id(module) for path, module in _own_modules(network)} != modules
        ):
            raise ModelError("the model has changed since it was planned; plan again")
        if planned.insertions:
            _apply(network, planned, flow, strength, attention)
        _remember(model)
        return model

    insertions = tuple(one.insertion for one in decision.planned)
    return Plan(recipe, insertions, tuple(decision.skips), flow, present, tuple(decision.planned), apply)


def _own_modules(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules but the attention that was put in."""
    attention = {id(part) for entry in attended_in(network) if entry.attention for part in entry.attention.modules()}
    return [(path, module) for path, module in network.named_modules() if id(module) not in attention]


def _apply(
    network: nn.Module, planned: Plan, flow: Dataflow, strength: float, attention: Callable[[int], nn.Module] | None
) -> None:
    there = list(attended_in(network))
    presence = presence_of(network)
    if there and attention is not None:
        raise ModelError("the model has attention already; eject it before other modules are put in")
    sites = [entry.site for entry in there]
    settings = [(entry.insertion.strength, entry.insertion.gain) for entry in there]
    for one in planned.planned:
        sites.append(record_of(one.insertion, one.witness, one.expression))
        settings.append((float(strength), 1.0))
    recipes = [*(presence.recipes if presence is not None else []), planned.recipe.to_dict()]
    attach(network, sites, recipes=recipes, example=shapes_of(flow.example), settings=settings, factory=attention)


def _remember(model: nn.Module) -> None:
    adapter = adapter_of(model)
    if adapter is not None:
        adapter.remember(model)


def _contents(network: nn.Module) -> tuple[list[Attended], list[tuple[float, float]], Any]:
    there = list(attended_in(network))
    return there, [(entry.insertion.strength, entry.insertion.gain) for entry in there], presence_of(network)


def _go_back(model: nn.Module, before: tuple[list[Attended], list[tuple[float, float]], Any]) -> None:
    """Undo `apply`."""
    there, settings, presence = before
    network = network_of(model)
    if not there:
        eject(model)
        return
    sites: list[SiteRecord] = [entry.site for entry in there]
    recipes, example = ([], None) if presence is None else (presence.recipes, presence.example)
    attach(network, sites, recipes=recipes, example=example, settings=settings)
    _remember(model)


def no_effect(planned: Plan) -> str:
    """Why a recipe has no effect at all."""
    name = planned.recipe.name or "the recipe"
    refused = [skip for skip in planned.skips if skip.hit and skip.reason != PRESENT]
    head = f"{name} matched no site in this model: all its rules are optional, and none finds what it names"
    if refused:
        head = f"{name} changes nothing in this model: all the sites that it matched are skipped"
    near = [f"  {skip.path or '(model)'}: {skip.reason}" for skip in (refused or planned.skips)[:3]]
    return "\n".join([f"{head}. Among what was left out:", *near] if near else [head])


__all__ = ["Example", "adjusted", "bypass", "eject", "inject", "injected", "plan", "survey", "verify"]
