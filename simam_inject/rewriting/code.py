"""From graphs to a forward: Python source with the original signature, compiled once and visible in tracebacks."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import fx, nn

from simam_inject.errors import InjectError
from simam_inject.rewriting.detours import detours, handed_on
from simam_inject.rewriting.guards import class_names, folding_lines, guard_lines, literal
from simam_inject.tracing.signature import Argument
from simam_inject.tracing.tracer import Body


class _Name:
    """Prints as a name in a signature."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class _CodeGen(fx.graph.CodeGen):
    """fx's code generator with the header of the original method instead of its own."""

    def __init__(self, header: str) -> None:
        super().__init__()
        self.header = header

    def gen_fn_def(self, *_fx_header: Any, **_options: Any) -> str:
        return self.header


def refuse_stale(module: nn.Module, what: str) -> NoReturn:
    """Called by a generated forward that would run otherwise than the traced one did."""
    raise InjectError(
        f"{type(module).__name__}: {what} differs from when SimAM was injected, and the rewritten forward holds the "
        "old value. Call simam_inject.eject(model), change it, and inject again."
    )


def refuse_method(module: nn.Module, method: str, why: str) -> NoReturn:
    """Called by a method that cannot run with SimAM in place."""
    raise InjectError(
        f"{type(module).__name__}.{method} cannot run with SimAM in it: {why}. Call simam_inject.eject(model) first."
    )


class Source:
    """Python source of one function and the objects it names."""

    def __init__(
        self, name: str, text: str, objects: dict[str, Any], signature: inspect.Signature | None = None
    ) -> None:
        self.name = name
        self.text = text
        self.objects = objects
        self.signature = signature
        """What `inspect.signature` says, as for a decorated function; None for what the text says."""

    @property
    def is_refusal(self) -> bool:
        """It only says why it cannot run."""
        return "_refuse_method" in self.objects

    def compile(self) -> Callable[..., Any]:
        """The function. Its source shows in tracebacks and `inspect.getsource`."""
        path = f"<simam_inject {self.name} {abs(hash(self.text)):x}>"
        linecache.cache[path] = (len(self.text), None, self.text.splitlines(keepends=True), path)
        namespace = dict(self.objects)
        exec(compile(self.text, path, "exec"), namespace)  # noqa: S102 - written from a traced graph, never from a file
        function: Any = namespace[self.name]
        if self.signature is not None:
            function.__signature__ = self.signature
        return function  # type: ignore[no-any-return]


def body_source(name: str, body: Body, graph: fx.Graph, module: nn.Module | None = None) -> Source:
    """Source of `graph` as a method `name`, with the signature of the traced method and checks of what it assumed.

    Args:
        module: whose method it will be; None for source that is only read.
    """
    objects: dict[str, Any] = {"_refuse_stale": refuse_stale}
    header = [f"def {name}{_signature(body.arguments, objects)}:"]
    served = () if module is None else detours(module, body)
    lines = [line for name, kinds in served for line in _detour_lines(name, kinds, body, objects)]
    lines += guard_lines(body, objects, served, {} if module is None else handed_on(module, body))
    if module is not None:
        if served:
            objects["_stock"] = getattr(type(module), body.name)
        lines += folding_lines(module, graph, objects)
    header += [f"    {line}" for line in lines]
    graph.set_codegen(_CodeGen("\n".join(header)))
    code = graph.python_code(root_module="self")
    return Source(name, code.src.lstrip("\n"), {**code.globals, **objects})


def _detour_lines(name: str, kinds: tuple[type, ...], body: Body, objects: dict[str, Any]) -> list[str]:
    """Lines that run the stock method for a call that it hands on before it computes anything; see `detours`."""
    return [
        f"if isinstance({name}, {class_names(kinds, objects)}):",
        f"    return _stock(self, {_passed(body.arguments)})",
    ]


def dispatch_source(name: str, arguments: tuple[Argument, ...], training: str, evaluation: str) -> Source:
    """Source of a method that runs one of two others, as `self.training` says."""
    objects: dict[str, Any] = {}
    signature, passed = _signature(arguments, objects), _passed(arguments)
    text = (
        f"def {name}{signature}:\n"
        f"    if self.training:\n"
        f"        return self.{training}({passed})\n"
        f"    return self.{evaluation}({passed})\n"
    )
    return Source(name, text, objects)


def inference_source(
    name: str, arguments: tuple[Argument, ...], inference: str, ordinary: Callable[..., Any]
) -> Source:
    """Source of a method that runs another in eager inference, and `ordinary` everywhere else."""
    objects: dict[str, Any] = {
        "_ordinary": ordinary,
        "_is_grad_enabled": torch.is_grad_enabled,
        "_is_compiling": torch.compiler.is_compiling,
        "_is_tracing": torch._C._get_tracing_state,
    }
    signature, passed = _signature(arguments, objects), _passed(arguments)
    text = (
        f"def {name}{signature}:\n"
        f"    if self.training or _is_grad_enabled() or _is_compiling() or _is_tracing():\n"
        f"        return _ordinary(self{', ' if passed else ''}{passed})\n"
        f"    return self.{inference}({passed})\n"
    )
    return Source(name, text, objects)


def boundary_source(name: str, inner: Callable[..., Any], child: str) -> Source:
    """Source of a method that runs `inner` and attends what it returns."""
    objects: dict[str, Any] = {"_inner": inner}
    try:
        parameters = list(inspect.signature(inner, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        parameters = [
            inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
            inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
        ]
    if parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        parameters = parameters[1:]  # self
    arguments = tuple(Argument(p.name, p.kind, p.default, None, False, True) for p in parameters)
    signature, passed = _signature(arguments, objects), _passed(arguments)
    text = f"def {name}{signature}:\n    return self.{child}(_inner(self{', ' if passed else ''}{passed}))\n"
    return Source(name, text, objects, inspect.signature(inner) if hasattr(inner, "__wrapped__") else None)


def refusal_source(name: str, why: str) -> Source:
    """Source of a method that only says why it cannot run."""
    text = f"def {name}(self, *args, **kwargs):\n    _refuse_method(self, {name!r}, {why!r})\n"
    return Source(name, text, {"_refuse_method": refuse_method})


def _signature(arguments: tuple[Argument, ...], objects: dict[str, Any]) -> str:
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    if any(argument.kind is inspect.Parameter.POSITIONAL_ONLY for argument in arguments):
        parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    for argument in arguments:
        default = argument.default
        if default is not inspect.Parameter.empty:
            default = _Name(literal(argument.default, f"_default_{argument.name}", objects))
        parameters.append(inspect.Parameter(argument.name, argument.kind, default=default))
    return str(inspect.Signature(parameters))


def _passed(arguments: tuple[Argument, ...]) -> str:
    written: dict[Any, str] = {
        inspect.Parameter.VAR_POSITIONAL: "*{0}",
        inspect.Parameter.VAR_KEYWORD: "**{0}",
        inspect.Parameter.KEYWORD_ONLY: "{0}={0}",
    }
    return ", ".join(written.get(argument.kind, "{0}").format(argument.name) for argument in arguments)
