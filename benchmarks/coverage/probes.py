"""The checks on one injected model beyond those of `verify`: live, copies, strict loading, eject, a second size."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.examples import Inputs
from benchmarks.coverage.records import Finding
from simam_inject import SimAM, eject, verify
from simam_inject.dataflow.example import Example, copied
from simam_inject.dataflow.twin import set_mode, to_clone, to_meta, twin_of
from simam_inject.editing.attach import attended_in, without_attention
from simam_inject.nested import tensors_of
from simam_inject.verification.outputs import difference

SEED = 0
MAX_PERTURBED = 24


def randomise(model: nn.Module) -> None:
    """Give parameters that start at zero a value: a branch that is multiplied by zero would hide everything in it."""
    noise = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() and not parameter.any():
                parameter.copy_(torch.rand(parameter.shape, generator=noise) * 0.2 + 0.1)


def run(model: nn.Module, inputs: Inputs) -> Any:
    """One forward without gradients, always from the same random state."""
    torch.manual_seed(SEED)
    with torch.no_grad():
        return model(*inputs.args)


def check_numbers(model: nn.Module, inputs: Inputs, second: Inputs | None, stock: Any) -> Iterator[Finding]:
    """All numeric checks on an injected model; it is ejected at the end.

    Args:
        stock: (output on `inputs`, class by path, state_dict of copies) of the model before injection.
    """
    plain, classes, state = stock
    yield from _verified(model, inputs, "")
    if second is None:
        yield Finding("second size", None, "the model takes one input size only")
    else:
        yield from _verified(model, second, "second size, ")
    live = run(model, inputs)
    yield Finding("has an effect", difference(live, plain) is not None, "the output is that of the original")
    yield _attempt("every SimAM changes the output", lambda: _liveness(model, inputs))
    yield _attempt("deepcopy", lambda: _copied(copy.deepcopy(model), model, live, inputs))
    with without_attention(model):
        is_pickled = _can_be_pickled(model)
    if is_pickled:
        yield _attempt("pickle", lambda: _copied(pickle.loads(pickle.dumps(model)), model, live, inputs))
    else:
        yield Finding("pickle", None, "the original cannot be pickled either")
    yield _attempt("strict load of the original's state_dict", lambda: _loaded(model, state))
    yield _attempt("eject, strict load of the injected's state_dict", lambda: _ejected(model, classes, plain, inputs))


def _can_be_pickled(model: nn.Module) -> bool:
    try:
        pickle.dumps(model)
    except Exception:  # torch refuses parametrized modules, Python refuses lambdas
        return False
    return True


def check_structure(model: nn.Module, inputs: Inputs, classes: dict[str, type], keys: list[str]) -> Iterator[Finding]:
    """The checks that need no numbers: a forward on meta tensors, keys, eject."""
    yield _attempt("every SimAM ran on meta tensors", lambda: _ran(model, inputs))
    yield Finding("keys equal", list(model.state_dict()) == keys)
    eject(model)
    found = {path: type(module) for path, module in model.named_modules()}
    yield Finding("eject", found == classes, "" if found == classes else "other classes or modules than before")


def attentions_of(model: nn.Module) -> dict[str, SimAM]:
    """Every SimAM by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, SimAM)}


def _verified(model: nn.Module, inputs: Inputs, prefix: str) -> Iterator[Finding]:
    try:
        found = verify(model, example_inputs=inputs.args)
    except Exception as error:
        yield Finding(f"{prefix}verify", False, _sentence(error))
        return
    for check in found.checks:
        yield Finding(prefix + check.name, check.ok, check.detail)


def _attempt(name: str, check: Callable[[], str | tuple[None, str] | None]) -> Finding:
    """A check that returns None if all is well, a complaint, or (None, why it could not be run)."""
    try:
        found = check()
    except Exception as error:
        return Finding(name, False, _sentence(error))
    if isinstance(found, tuple):
        return Finding(name, None, found[1])
    return Finding(name, found is None, found or "")


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _copied(twin: nn.Module, model: nn.Module, live: Any, inputs: Inputs) -> str | None:
    ours, theirs = attentions_of(model), attentions_of(twin)
    if list(ours) != list(theirs) or any(ours[path] is theirs[path] for path in ours):
        return "its SimAMs are not copies of the original's"
    if list(twin.state_dict()) != list(model.state_dict()):
        return "its keys differ"
    return difference(run(twin, inputs), live)


def _loaded(model: nn.Module, state: dict[str, torch.Tensor]) -> str | None:
    model.load_state_dict(state, strict=True)
    return None if list(model.state_dict()) == list(state) else "keys differ from the original's"


def _ejected(model: nn.Module, classes: dict[str, type], plain: Any, inputs: Inputs) -> str | None:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    eject(model)
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=True), strict=True)
    if {path: type(module) for path, module in model.named_modules()} != classes:
        return "other classes or modules than before"
    return difference(run(model, inputs), plain)


def _ran(model: nn.Module, inputs: Inputs) -> str | None:
    """One forward of a copy on meta tensors, or on real ones where the model looks at values."""
    try:
        return _never_ran(model, inputs, to_meta)
    except Exception:
        return _never_ran(model, inputs, to_clone)


def _never_ran(model: nn.Module, inputs: Inputs, convert: Callable[[torch.Tensor], torch.Tensor]) -> str | None:
    twin = twin_of(model, convert)
    set_mode(twin, training=False)
    ran: set[str] = set()

    def note(path: str) -> Callable[..., None]:
        return lambda *_: ran.add(path)

    for path, module in attentions_of(twin).items():
        module.register_forward_hook(note(path))
    args, kwargs = Example(inputs.args, {}).fresh(convert if convert is to_meta else copied)
    with torch.no_grad():
        twin(*args, **kwargs)
    idle = attentions_of(twin).keys() - ran
    return f"{min(idle)} never ran" if idle else None


def _liveness(model: nn.Module, inputs: Inputs) -> str | tuple[None, str] | None:
    """The gradient of the output by a factor on each SimAM is not zero; where it is, a perturbation must show."""
    model = twin_of(model, to_clone)
    modules = attentions_of(model)
    dead = [path for path, gradient in _gradients(model, modules, inputs).items() if not gradient]
    unmoved = [path for path in dead[:MAX_PERTURBED] if not _moves(model, modules[path], inputs)]
    if unmoved:
        set_mode(model, training=True)  # a box that no threshold lets through has a loss
        try:
            unmoved = [path for path in unmoved if not _moves(model, modules[path], inputs)]
        except Exception as error:
            count = f"{len(unmoved)} of {len(modules)} do not in eval mode, e.g. {unmoved[0]}"
            return None, f"{count}; train mode does not run ({_sentence(error)})"
        finally:
            set_mode(model, training=False)
    idle = [path for path in unmoved if _is_idle(model, path, inputs)]
    unmoved = [path for path in unmoved if path not in idle]
    if unmoved:
        return f"{len(unmoved)} of {len(modules)} do not, e.g. {unmoved[0]}"
    if idle:
        return None, f"{len(idle)} of {len(modules)} do not, nor does in the original the value that they attend"
    if len(dead) > MAX_PERTURBED:
        return (
            None,
            f"{len(dead)} have no gradient; the first {MAX_PERTURBED} were perturbed and changed it",
        )
    return None


def _gradients(model: nn.Module, modules: dict[str, SimAM], inputs: Inputs) -> dict[str, float]:
    factors = {path: torch.ones((), requires_grad=True) for path in modules}
    try:
        with _scaled(modules, factors):
            torch.manual_seed(SEED)
            outputs = [t for t in tensors_of(model(*inputs.args)) if t.is_floating_point() and t.requires_grad]
            noise = torch.Generator().manual_seed(SEED)
            loss = sum((t * torch.rand(t.shape, generator=noise)).sum() for t in outputs)
            found = torch.autograd.grad(loss, list(factors.values()), allow_unused=True)
    except Exception:  # in-place arithmetic on what autograd keeps, an output without gradient
        return dict.fromkeys(modules, 0.0)
    return {path: 0.0 if g is None else float(g) for path, g in zip(factors, found, strict=True)}


def _moves(model: nn.Module, module: nn.Module, inputs: Inputs, call: int | None = None) -> bool:
    """Does noise on what the module returns change the output?

    Not a mere factor: an order (top-k) would survive it. Not a small one: where every value is negative, a ReLU behind
    it (FCOS has one on its boxes) would hide it.

    Args:
        call: disturb this one of its calls only, from 0.
    """
    calls = itertools.count()

    def disturb(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        if call not in (None, next(calls)):
            return output
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(SEED))
        return output + 3 * output.abs().max() * noise.to(output.dtype)

    before = run(model, inputs)
    handle = module.register_forward_hook(disturb)
    try:
        return difference(before, run(model, inputs)) is not None
    finally:
        handle.remove()


def _is_idle(model: nn.Module, attention: str, inputs: Inputs) -> bool:
    """Is the value idle in the original too: a token that the head does not read, boxes that are all clipped?

    It is known of what a module returns; a result of a function is taken to matter.
    """
    entry = next(entry for entry in attended_in(model) if entry.site.module == attention)
    name, _, index = entry.site.path.partition("[")
    with without_attention(model):
        module = dict(model.named_modules()).get(name)
        call = int(index.rstrip("]") or 1) - 1 if index else None
        if module is None or _moves(model, module, inputs, call):
            return False
        set_mode(model, training=True)
        try:
            return not _trains_at_all(model, inputs) or not _moves(model, module, inputs, call)
        finally:
            set_mode(model, training=False)


def _trains_at_all(model: nn.Module, inputs: Inputs) -> bool:
    try:
        run(model, inputs)
    except Exception:
        return False
    return True


@contextmanager
def _scaled(modules: dict[str, SimAM], factors: dict[str, torch.Tensor]) -> Iterator[None]:
    """Every SimAM's result times its factor."""

    def scaling(factor: torch.Tensor) -> Callable[..., torch.Tensor]:
        return lambda module, args, output: output * factor.to(output.dtype)

    handles = [module.register_forward_hook(scaling(factors[path])) for path, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
