"""What `verify` returns, and the checks that run nothing: the SimAMs are those planned, the parameters unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from simam_inject.attention import SimAM
from simam_inject.editing.attach import Attended
from simam_inject.editing.presence import presences_in, watched_in
from simam_inject.errors import a_type, shortened
from simam_inject.nested import version_of

Marks = dict[str, tuple[int, int | None]]


DISTURBED = "the model draws random numbers, and another thread or another attention module draws some in between"
EVAL_ONLY = "in train mode the model has no such value"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that verification looked at."""

    name: str
    ok: bool | None
    """None: it could not be run on this model; `detail` says why."""
    detail: str = ""

    @property
    def result(self) -> str:
        """In words."""
        return {True: "ok", False: "failed", None: "not run"}[self.ok]

    def __str__(self) -> str:
        return f"{self.result}: {self.name}" + f": {self.detail}" * bool(self.detail)


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of one verification."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.ok is False)

    @property
    def ok(self) -> bool:
        """No check failed."""
        return not self.failed

    @property
    def warning(self) -> str:
        """Why the injected model cannot be trained, and the original can; "" for any other model."""
        return next((check.detail for check in self.checks if check.detail.startswith(EVAL_ONLY)), "")

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        passed = sum(check.ok is True for check in self.checks)
        head = f"verified: {passed} checks" if self.ok else "verification failed"
        return "\n".join([head, *(f"  {check}" for check in self.checks if check.ok is not True)])


def unless(problems: Iterable[str], check: Check) -> Check:
    """The check, failed if there are problems."""
    found = shortened([*problems], joint="; ")
    return Check(check.name, False, found) if found else check


def tensor_marks(model: nn.Module) -> Marks:
    """Identity and version of every parameter and buffer: one of them changes when it is replaced or written to."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: (id(tensor), version_of(tensor)) for name, tensor in tensors}


def as_planned(model: nn.Module, sites: list[Attended]) -> Check:
    """Every site has its SimAM, with the recorded settings, and not bypassed."""
    presences = presences_in(model)
    problem = "the presence check was removed from the model"
    if "" in presences:
        expected = watched_in(model)
        problem = f"{len(sites)} of {expected} sites are in the model" if len(sites) < expected else ""
        if len(sites) > expected and len(presences) == 1:  # a part may have been injected by itself
            came = f"{len(sites) - expected} of {len(sites)} sites came with modules that were added later"
            problem = f"{came}: call inject again, which watches them as well"
        recipes = [recipe for own in presences.values() for recipe in own.recipes]
        holders = [(path, own, *held) for path, own in presences.items() for held in own.holders]
        peers = {
            ".".join((*([path] if path else []), *place, site.child))
            for path, own, place, hook, _ in holders
            for site in hook.sites
            if site.path in own.peers
        }
        problem = next(filter(None, (_why_other(entry, recipes, peers) for entry in sites)), problem)
    return Check("every SimAM is the one planned", not problem, problem or f"{len(sites)} of {len(sites)}")


def _why_other(entry: Attended, recipes: list[dict[str, Any]], peers: set[str]) -> str | None:
    """How the SimAM at a site differs from the plan, or the plan from its recipe."""
    attention, site = entry.attention, entry.site
    if attention is None:
        return f"{site.path} has lost its module {site.child}"
    if not isinstance(attention, SimAM):
        is_peer = site.module in peers
        return None if is_peer else f"{site.path} has {a_type(attention)} instead of its SimAM"
    if attention.bypassed:
        return f"{site.path} is bypassed"
    if (attention.e_lambda, attention.channel_dim) != (site.e_lambda, site.channel_dim):
        found, planned = (f"e_lambda {one.e_lambda:g}, channel_dim {one.channel_dim}" for one in (attention, site))
        return f"{site.path} has {found}; planned {planned}"
    lambdas = _lambdas(recipes, site.rule)
    if lambdas and site.e_lambda not in lambdas:
        return f"{site.path} has e_lambda {site.e_lambda:g}; its recipe has {lambdas[0]:g}"
    return None


def _lambdas(recipes: list[dict[str, Any]], rule: int) -> list[float]:
    """Lambda of the rule of this index in each recipe."""
    rules = [(recipe, own) for recipe in recipes for own in recipe["rules"][rule : rule + 1]]
    return [own.get("e_lambda") or recipe.get("e_lambda") or SimAM().e_lambda for recipe, own in rules]


def same_tensors(model: nn.Module, sites: list[Attended], keys: list[str], before: Marks | None) -> Check:
    """The keys of the state_dict are `keys`, as without SimAM, and no tensor differs from `before`, if known."""
    added = tuple(f"{entry.site.module}." for entry in sites)
    found, marks = [key for key in model.state_dict() if not key.startswith(added)], tensor_marks(model)
    changed = [name for name, mark in (before or {}).items() if marks.get(name) != mark]
    problem = f"{shortened(changed)}: replaced or written to" if changed else ""
    if found != keys:
        problem = f"keys differ: {shortened(sorted(set(found) ^ set(keys))) or 'their order'}"
    return Check("state_dict keys and parameters unchanged", not problem, problem or f"{len(keys)} keys")
