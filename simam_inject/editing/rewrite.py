"""Wrap one expression of a forward in SimAM, where no module returns the value or is its only reader.

The method's own source is compiled again with a call of SimAM around the expression, and bound on the one instance.
Nothing is traced and nothing is frozen: every branch, flag, size, global and side effect is Python's, as before.
Copies and files hold which expression of which version of the source it is; the code always comes from the class.
"""

from __future__ import annotations

import ast
import copy
import gc
import inspect
import types
from functools import lru_cache, partial
from typing import Any, Self

import torch
from torch import fx, nn

from simam_inject.branches import in_other_branches
from simam_inject.editing.hooks import ADVICE, SiteHook, attend, behind, guard_hooks, lost
from simam_inject.editing.serialization import checked, read_sites, write_sites
from simam_inject.errors import FileError, ModelError
from simam_inject.planning.insertions import Insertion
from simam_inject.source import is_named, locate, may_run, method_source, parse


class RewrittenMethod(SiteHook):
    """A method of one module with SimAM around some of its expressions; an attribute of the instance under its name."""

    table, kind = "__dict__", "rewritten"

    owner: nn.Module
    method: str
    function: types.FunctionType
    original: types.FunctionType
    version: tuple[Any, ...]
    """The method of the class that it was made from, its code and defaults: tools that reload a file change them."""
    children: tuple[str, ...]
    """Those of the module that the method names: where one is removed, the method takes another way."""
    is_taken_off = False
    """It was removed from its module: whoever still holds it runs the original."""
    is_unpickled = False
    """It is from a pickle, in which anything may refer to it."""
    rewritten: Self
    """This one: what `torch.compile` makes of it has the same attributes."""

    @property
    def key(self) -> str:  # type: ignore[override]
        """It is bound under the name of the method, from where forwards call it."""
        return self.method

    @classmethod
    def of(cls, owner: nn.Module, method: str, sites: list[Insertion]) -> Self:
        """The method of this module with SimAM inside it.

        Raises:
            ModelError: the class has another version of the method than the one that was planned.
        """
        original = inspect.getattr_static(type(owner), method, None)
        source, where = method_source(original), f"{type(owner).__name__}.{method}"
        if not may_run(type(owner), method):
            raise ModelError(f"{where} is not run by forward, so SimAM cannot be added inside it; {ADVICE}")
        if source is None or not isinstance(original, types.FunctionType):
            raise ModelError(f"the source of {where} is not available, so SimAM cannot be added inside it; {ADVICE}")
        own = original.__code__.co_varnames[0]
        attributes = [n for n in ast.walk(source.function) if isinstance(n, ast.Attribute)]
        used = {n.attr for n in attributes if isinstance(n.value, ast.Name) and n.value.id == own}
        places, others = dict[int, tuple[int, bool]](), dict[int, tuple[int, bool]]()
        for place, site in enumerate(sites):
            if site.expression is None or site.expression.digest != source.digest:
                raise ModelError(f"{where} differs from the version that SimAM was planned for; {ADVICE}")
            try:
                node = locate(source.function, site.expression.span)
                others |= {id(other): (place, True) for other in in_other_branches(source.function, node)[0]}
                places[id(node)] = place, False
            except LookupError as error:
                raise ModelError(f"{where} has {error}; inject the model again") from None
        function = _compile(_Wrapper(others | places, own, method).visit(source.function), original)
        children = tuple(name for name in vars(owner).get("_modules", ()) if any(is_named(one, name) for one in used))
        names = {"owner": owner, "method": method, "sites": sites, "original": original, "children": children}
        made = cls.made(**names, function=function, version=_version(original))
        made.rewritten = made
        return made

    def put_on(self, module: nn.Module) -> None:
        """Bind it, unless it is bound inside what `torch.compile(module.forward)` has made."""
        if not self.is_bound_on(module):
            vars(module)[self.method] = self
        self.is_taken_off = False

    def take_off(self, module: nn.Module) -> None:
        """Remove it from a module; what wraps it stays, and runs the original."""
        if vars(module).get(self.method) is self:
            del vars(module)[self.method]
        self.is_taken_off = self.is_taken_off or self.owner is module

    def is_bound_on(self, module: nn.Module) -> bool:
        """The module runs it under its name, by itself or in wrappers that `torch.compile` or decorators have made."""
        bound = vars(module).get(self.method)
        if bound is self or getattr(bound, "rewritten", None) is not self or torch.compiler.is_dynamo_compiling():
            return getattr(bound, "rewritten", None) is self
        found, seen = [bound], {id(bound)}
        for one in found:
            if one is self:
                return True
            used = {id(other): other for other in self._used_by(one) if id(other) not in seen}
            found += used.values()
            seen |= used.keys()
        return False

    def _used_by(self, one: Any) -> list[Any]:
        """What a wrapper refers to, except by attributes that it copied (`functools.update_wrapper`)."""
        if isinstance(one, nn.Module):  # accelerate keeps the method as `_old_forward`
            return [value for name, value in vars(one).items() if name != self.method and behind(value) is self]
        own = getattr(one, "__dict__", {})
        copied = vars(self), getattr(own.get("__wrapped__"), "__dict__", {})
        used = [v for name, v in own.items() if name != "__wrapped__" and all(c.get(name) is not v for c in copied)]
        if isinstance(one, types.FunctionType):  # without its globals
            used += [one.__defaults__, one.__kwdefaults__, *(one.__closure__ or ())]
        elif type(one) in _REFERRING:
            used += [value for value in gc.get_referents(one) if value is not own]
        return [v for v in used if issubclass(type(v), (*_REFERRING, nn.Module)) or behind(v) is self]

    def attend(self, place: int, x: Any, is_other: bool = False) -> Any:
        """Apply the SimAM at one of the sites: what the method computes in the place of an expression.

        In other branches, the expression may compute something else than a map of that kind, which stays.
        """
        site, attended = self.sites[place], not is_other or isinstance(x, fx.Proxy)
        if isinstance(x, torch.Tensor) and x.is_floating_point() and x.dim() == len(site.shape):
            attended = attended or x.shape[site.channel_dim] == site.shape[site.channel_dim]
        return attend(self.owner, site, x) if attended else x

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method on the module that it was bound on.

        Raises:
            ModelError: it is bound elsewhere, as a damaged or hostile file can do, or the class has another method now.
        """
        if not self.is_bound_on(self.owner) and (self.is_unpickled or not self.is_taken_off):
            raise ModelError(f"the rewritten method {self.method!r} is not bound under its own name; {ADVICE}")
        if self.is_taken_off:
            return self.original(self.owner, *args, **kwargs)
        now = _version(getattr(type(self.owner), self.method))
        if any(one is not other for one, other in zip(self.version, now, strict=False)):
            self._renew()
        return self.function(self.owner, *args, **kwargs)

    def _renew(self) -> None:
        """Rewrite the method of the class again: its file was reloaded, or its defaults were changed.

        Raises:
            ModelError: its source is another one, or `torch.compile` traces this.
        """
        name = f"{type(self.owner).__name__}.{self.method}"
        error = ModelError(f"{name} was replaced after SimAM was added inside it; {ADVICE}")
        if torch.compiler.is_dynamo_compiling():
            raise error
        method = getattr(type(self.owner), self.method)
        if getattr(method, "__code__", None) == self.version[1]:  # its source may be gone: cloudpickle has none
            function = _with_code(self.function.__code__, method)
            vars(self).update(function=function, original=method, version=_version(method))
            return
        try:
            new = RewrittenMethod.of(self.owner, self.method, self.sites)
        except ModelError:
            raise error from None
        self.function, self.original, self.version = new.function, new.original, new.version

    def belongs_to(self, module: nn.Module, name: str) -> bool:
        """False if it was removed, and for another module that refers to it, as `torch.compile(block)` returns."""
        return name == self.method and not self.is_taken_off and type(self.owner) is type(module)

    def is_on(self, module: nn.Module) -> bool:
        """The module runs this very method, on itself, and has the children that it names."""
        is_bound = self.is_bound_on(module) and self.owner is module
        return is_bound and all(name in module._modules for name in self.children)

    def mend(self, module: nn.Module, root: nn.Module) -> bool:
        """Bind a new one on a shallow copy of its owner (as DataParallel makes), which shares the method.

        Raises:
            ModelError: it was replaced by another function, the copy is the root itself, or a child that it names was
                removed, as RepVGG does when it merges its branches into one convolution.
        """
        gone = [name for name in self.children if name not in module._modules]
        if gone:
            raise lost(self.sites[0], f"its module has no {gone[0]} any more")
        bound = behind(vars(module).get(self.method))
        if not isinstance(bound, RewrittenMethod) or not bound.is_bound_on(module):
            raise lost(self.sites[0], f"{self.method} of its module was removed, or replaced by another function")
        if bound.owner is not module and module is root and self.method == "forward":  # looked up before this check
            raise ModelError(
                "a shallow copy of this model, or one that was made after its forward was wrapped (torch.compile, a "
                "decorator), would run the forward of the original; use copy.deepcopy, and wrap the forward after that"
            )
        if bound.owner is not module:
            vars(module)[self.method] = RewrittenMethod.of(module, self.method, self.sites)
        return False

    def __getattr__(self, name: str) -> Any:
        """What a plain method has: `__name__`, `__self__`, `__code__`, by which `torch.export` names sizes."""
        if "function" not in vars(self):  # while it is unpickled
            raise AttributeError(name)
        return getattr(types.MethodType(self.function, self.owner), name)

    @property
    def __signature__(self) -> inspect.Signature:
        """Without `self`."""
        return inspect.signature(types.MethodType(self.function, self.owner))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The method on the copy of its owner."""
        twin = super().__deepcopy__(memo)
        twin.rewritten = twin
        twin.owner = copy.deepcopy(self.owner, memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        sites = write_sites(self.sites)
        names = ("owner", "method", "children", "is_taken_off")
        return {name: getattr(self, name) for name in names} | {"sites": sites}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Check what a file holds, and compile the code of the class again. The owner may not be complete yet.

        Raises:
            FileError: a field is not valid.
            ModelError: the class has another version of the method.
        """
        owner, method, sites = state.get("owner"), state.get("method"), read_sites(state.get("sites"), self.kind)
        methods = {site.expression and site.expression.method for site in sites}
        if not isinstance(owner, nn.Module) or not isinstance(method, str) or methods != {method}:
            raise FileError("a rewritten method of SimAM is not valid: it has no owner, or sites in another method")
        guard_hooks()
        children = checked(tuple[str, ...], state.get("children"), "the children of a rewritten method")
        vars(self).update({**vars(RewrittenMethod.of(owner, method, sites)), "children": children, "rewritten": self})
        self.is_taken_off, self.is_unpickled = state.get("is_taken_off") is True, True


_REFERRING = (types.FunctionType, types.MethodType, partial, type(lru_cache(len)), types.CellType, list, tuple, dict)
"""Types of what may be between a wrapper and the method that it runs."""


def _version(method: object) -> tuple[Any, ...]:
    """What `RewrittenMethod.version` holds; while `torch.compile` traces, defaults are other objects."""
    names = ("__code__",) if torch.compiler.is_dynamo_compiling() else ("__code__", "__defaults__", "__kwdefaults__")
    return method, *(getattr(method, name, None) for name in names)


class _Wrapper(ast.NodeTransformer):
    """Writes `self.method.rewritten.attend(0, ...)` around some nodes of a method.

    Args:
        places: index of the site of each node, by `id`, and whether it is that of another branch.
        owner: name of the method's first parameter.
        method: the method's name on it.
    """

    def __init__(self, places: dict[int, tuple[int, bool]], owner: str, method: str) -> None:
        self.places, self.owner, self.method = places, owner, method

    def visit(self, node: ast.AST) -> Any:
        result: Any = self.generic_visit(node)
        if id(node) not in self.places:
            return result
        is_augmented = isinstance(result, ast.AugAssign)  # x += y: x = simam(x) behind it
        value = ast.Name(result.target.id, ast.Load()) if is_augmented else result
        method: ast.expr = ast.Attribute(ast.Name(self.owner, ast.Load()), self.method, ast.Load())
        for name in ("rewritten", "attend"):
            method = ast.Attribute(method, name, ast.Load())
        place, is_other = self.places[id(node)]
        call = ast.Call(method, [ast.Constant(place), value, *([ast.Constant(True)] if is_other else [])], [])
        made = ast.Assign([ast.Name(result.target.id, ast.Store())], call) if is_augmented else call
        ast.fix_missing_locations(ast.copy_location(made, node))
        return [result, made] if is_augmented else made


def _compile(function: ast.FunctionDef, original: types.FunctionType) -> types.FunctionType:
    """Compile the changed source with the globals, defaults and closure of the original."""
    code: Any = original.__code__
    cells = code.co_freevars
    kind = original.__qualname__.rpartition(".")[0].rpartition(".")[2]
    kind = kind if kind.isidentifier() else "_"
    # It is compiled inside a class of the same name, for private names (`self.__scale` is `self._Block__scale`). The
    # variables of the closure are parameters of a function around that, so that the compiler makes cells of them.
    # Its name is that of the global class, or of the closure's variable, as in the original.
    scope = "pass" if kind in cells else f"global {kind}"
    module: Any = parse(f"def _closure({', '.join(cells)}):\n {scope}\n class {kind}:\n  pass")
    module.body[0].body[1].body = [ast.increment_lineno(function, code.co_firstlineno - 1)]
    code = compile(module, code.co_filename, "exec")
    for name in ("_closure", kind, function.name):
        code = next(item for item in code.co_consts if isinstance(item, types.CodeType) and item.co_name == name)
    return _with_code(_shared(code, code.co_filename), original)


def _with_code(code: types.CodeType, original: types.FunctionType) -> types.FunctionType:
    """A function of this code, with the globals, defaults and closure of the original."""
    cells = dict(zip(original.__code__.co_freevars, original.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in code.co_freevars)
    result = types.FunctionType(code, original.__globals__, original.__name__, original.__defaults__, closure)
    result.__kwdefaults__ = original.__kwdefaults__
    result.__qualname__ = original.__qualname__
    return result


@lru_cache(maxsize=512)
def _shared(code: types.CodeType, _filename: str) -> types.CodeType:
    """The first of equal code objects: `torch.compile` compiles blocks of one class once if they have the same code."""
    return code


torch.serialization.add_safe_globals([RewrittenMethod])
