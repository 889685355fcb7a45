"""The tracer: `torch.fx` with recorded values, for one method of one module, children kept as leaves.

What it adds to `fx.Tracer`:

* every proxy carries the value the example forward saw, computed on meta tensors or taken from the recorded calls of
  children, and every list, tuple or dict becomes a real one of proxies: `list(x.chunk(2, 1))`, `len(feats)`,
  iterating a dict and unpacking a shape are then ordinary Python;
* a decision on data, on a shape or on anything else that depends on the input is refused, never baked in;
* what the forward reads of its modules is noted (see `watching`): the generated forward checks plain attributes, and a
  forward that read `training` is traced in both modes.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import fx, nn

from simam_inject.tracing.nodes import arguments_behind, containers_in, drop_unused_reads, expression_of, look_up
from simam_inject.tracing.proxies import Refusal, ValueProxy
from simam_inject.tracing.reading import attributes_of, globals_of, reached, typed_names
from simam_inject.tracing.recording import Call
from simam_inject.tracing.signature import Argument, bind, has_numbers
from simam_inject.tracing.snapshot import mode
from simam_inject.tracing.values import (
    UNKNOWN,
    Unknown,
    is_named_tuple,
    leaves,
    map_structure,
    to_meta,
)
from simam_inject.tracing.watching import IN_PLACE_OPERATORS, Watch, is_constant, same_items, watched


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """One method of a module as a graph. `node.meta["value"]` is what the example forward saw there."""

    name: str
    graph: fx.Graph
    arguments: tuple[Argument, ...]
    guards: tuple[tuple[str, Any], ...]
    """Plain attributes the method read, by dotted path from the module, with the values the graph holds."""
    lengths: tuple[tuple[str, int], ...]
    """Containers the method listed or counted, by path, with their numbers of children."""
    missing: tuple[str, ...]
    """Attributes the method asked for in vain, by path."""
    surroundings: tuple[tuple[dict[str, Any], str, Any], ...]
    """Plain globals that the code of the method reads: a namespace, the name, the value."""
    classes: tuple[tuple[str, tuple[type, ...], bool], ...]
    """What `isinstance` said of arguments and of modules: an expression, the classes, the answer."""
    kinds: frozenset[str]
    """Arguments from which something was computed whose class decided something."""
    ranks: frozenset[str]
    """Arguments whose rank decided something, or the rank of something computed from them."""
    reads_training: bool


def trace(module: nn.Module, call: Call, name: str = "forward", *, training: bool = False) -> Body:
    """Trace the method `name` of `module` as `call` called it. The module is left as found.

    Whole numbers that the caller passes are inputs of the graph; where the forward decides something by them, they are
    constants that the generated forward checks.

    Raises:
        Refusal: the method cannot stand as a graph; the message says why.
    """
    tracer = _ScopeTracer(call, name, Watch())
    try:
        return _trace_once(module, tracer, name, training=training)
    except Refusal:
        if not has_numbers(tracer.arguments):
            raise
    return _trace_once(module, _ScopeTracer(call, name, Watch(), fix_numbers=True), name, training=training)


def _trace_once(module: nn.Module, tracer: _ScopeTracer, name: str, *, training: bool) -> Body:
    function = inspect.getattr_static(type(module), name)
    if not inspect.isfunction(function):
        raise Refusal(f"{type(module).__name__}.{name} is not a Python function")
    watch = tracer.watch
    try:
        with mode(module, training), torch.no_grad(), watched(module, watch):
            graph = tracer.trace(module)
            tracer.check_arguments()
    except Refusal:
        raise
    except (fx.proxy.TraceError, Exception) as error:
        told = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        if ValueProxy.__name__ in str(error) or "TorchScript" in str(error):
            raise Refusal(f"hands a value to compiled code, which is no part of a graph ({told:.160})") from error
        raise Refusal(f"cannot be traced ({told:.160})") from error
    drop_unused_reads(graph)
    stock: Any = type(module)
    functions = reached(stock, function)
    typed = typed_names(functions[0].__code__) & {argument.name for argument in tracer.arguments if argument.is_proxied}
    if typed:
        raise Refusal(f"asks for the type of {min(typed)} with type() or __class__; isinstance() could be followed")
    for path, (owner, _) in watch.objects.items():
        read = attributes_of(path, owner, functions)
        watch.attributes.update((name, copy.deepcopy(value)) for name, value in read if is_constant(value))
    guards, lengths = sorted(watch.attributes.items()), sorted(watch.lengths.items())
    return Body(
        name=name,
        graph=graph,
        arguments=tracer.arguments,
        guards=tuple(guards),
        lengths=tuple(lengths),
        missing=tuple(sorted(watch.missing)),
        surroundings=tuple((space, name, space[name]) for space, name in globals_of(functions)),
        classes=tuple((what, kinds, answer) for (what, kinds), answer in watch.classes.items()),
        kinds=frozenset(watch.kinds),
        ranks=frozenset(watch.ranks),
        reads_training=watch.reads_training,
    )


class _ScopeTracer(fx.Tracer):
    proxy_buffer_attributes = True  # a buffer read as a value would be computed with, and changed, while tracing

    def __init__(self, call: Call, name: str, watch: Watch, *, fix_numbers: bool = False) -> None:
        super().__init__()
        self.watch = watch
        self._fix_numbers = fix_numbers
        self._attribute_proxies: dict[str, Any] = {}
        watch.proxy_of = self._proxy_of_attribute
        self.traced_func_name = name
        self.arguments: tuple[Argument, ...] = ()
        self._given: list[tuple[str, Any, Any]] = []
        """Every list and dict among the arguments: name of the argument, the object, its items before."""
        self._unfolded: dict[int, tuple[Any, Any, fx.Node]] = {}
        """Containers made of one proxy, by id: the object, its items then, the node it stands for."""
        self._call = call
        self._outputs: defaultdict[int, Iterator[Any]] = defaultdict(lambda: iter(()))
        outputs: defaultdict[int, list[Any]] = defaultdict(list)
        for child in call.children:
            outputs[id(child.module)].append(child.output)
        for key, found in outputs.items():
            self._outputs[key] = iter(found)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 - fx names them
        return True

    def proxy(self, node: fx.Node) -> ValueProxy:
        return ValueProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        # By exact type first: a proxy passes for a Tensor where a forward asks with isinstance.
        if issubclass(type(a), fx.Proxy):
            return a.node
        container, items, node = self._unfolded.get(id(a), (None, None, None))
        if container is a and a and same_items(a, items):
            return node  # handed on whole: what is in it may differ in train mode
        if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter):
            known = any(a is buffer for buffer in self.root.buffers()) or a in self.tensor_attrs
            if not known:
                raise Refusal("makes a tensor out of nothing (torch.zeros, torch.arange, a parametrized weight, ...)")
        return super().create_arg(a)

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,  # noqa: ARG002 - fx passes it
        concrete_args: Any = None,  # noqa: ARG002 - fx passes it
    ) -> tuple[Any, list[Any]]:
        self.arguments = bind(root_fn, self._call.args, self._call.kwargs, fix_numbers=self._fix_numbers)
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for argument in self.arguments:
            value = argument.value
            if argument.is_proxied:
                node = self.create_node("placeholder", argument.name, (), {})
                node.meta["value"] = value
                value = self._unfold(self._with_value(self.proxy(node), value))
            else:
                value = copy.deepcopy(value)
            self._given += [(argument.name, container, copy.copy(container)) for container in containers_in(value)]
            if argument.kind is inspect.Parameter.VAR_POSITIONAL:
                positional.extend(value)
            elif argument.kind is inspect.Parameter.VAR_KEYWORD:
                keywords.update(value)
            elif argument.kind is inspect.Parameter.KEYWORD_ONLY:
                keywords[argument.name] = value
            else:
                positional.append(value)
        root = self.root
        return lambda: root_fn(root, *positional, **keywords), []

    def check_arguments(self) -> None:
        """A list that the forward fills is the caller's own, and a graph would fill a copy.

        Raises:
            Refusal: the forward changed a list or dict that it was given.
        """
        for name, container, content in self._given:
            if not same_items(container, content):
                raise Refusal(f"changes a {type(container).__name__} that it is given ({name})")

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
        proxy_factory_fn: Any = None,
    ) -> Any:
        proxy = super().create_proxy(kind, target, (*args,), {**kwargs}, name, type_expr, proxy_factory_fn)
        self.watch.is_paused = True
        try:
            value = self._evaluate(kind, target, args, kwargs)
        finally:
            self.watch.is_paused = False
        proxy.node.meta["value"] = value
        proxy.node.meta["in_place"] = self._changes_input(kind, target, args, kwargs)
        return self._unfold(self._with_value(proxy, value))

    def note_rank(self, proxy: fx.Proxy) -> None:
        """The forward asked for the rank of a value, so it depends on the ranks of what that was computed from."""
        self.watch.ranks |= arguments_behind(proxy.node)

    def note_class(self, proxy: fx.Proxy, kinds: tuple[type, ...], answer: bool) -> None:
        """The forward asked for the class of a value."""
        written = expression_of(proxy.node)
        if written is None:
            self.watch.kinds |= arguments_behind(proxy.node)
        else:
            self.watch.classes[written, kinds] = answer

    def _proxy_of_attribute(self, path: str) -> Any:
        if path not in self._attribute_proxies:
            self._attribute_proxies[path] = self.create_proxy("get_attr", path, (), {})
        return self._attribute_proxies[path]

    @staticmethod
    def _with_value(proxy: Any, value: Any) -> Any:
        proxy.__dict__["value"] = value
        return proxy

    def _unfold(self, proxy: Any) -> Any:
        """The proxy of a container becomes a real container of proxies."""
        container = self._container_of(proxy)
        if container is not proxy:
            self._unfolded[id(container)] = (container, copy.copy(container), proxy.node)
        return container

    def _container_of(self, proxy: Any) -> Any:
        value = proxy.value
        kind = type(value)
        if kind is torch.Size:
            self.note_rank(proxy)
        if kind in (list, tuple, torch.Size):
            items = [self._item(proxy, index) for index in range(len(value))]
            return items if kind is list else tuple(items)
        if kind in (dict, OrderedDict):
            return kind((key, self._item(proxy, key)) for key in value)
        if is_named_tuple(value):
            return kind(*(self._item(proxy, index) for index in range(len(value))))
        return proxy

    def _item(self, proxy: Any, index: Any) -> Any:
        if proxy.value[index] is None or isinstance(proxy.value[index], str):
            return proxy.value[index]  # an optional part that was left out; a name, which no input can change
        return self.create_proxy("call_function", operator.getitem, (proxy, index), {})

    def _changes_input(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this node writes into its first argument, as far as its name, its arguments or its module tell."""
        if kind == "call_module":
            module = look_up(self.root, target)
            while isinstance(module, nn.Sequential) and module._modules:
                module = next(iter(module._modules.values()))
            return vars(module).get("inplace") is True  # not an attribute access: it would count as the forward's own
        name = target if kind == "call_method" else getattr(target, "__name__", "")
        if name in IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace"):
            return True
        if kind != "call_function" or not inspect.isfunction(target):
            return False
        names = inspect.signature(target).parameters
        return any(name == "inplace" and argument is True for name, argument in zip(names, args, strict=False))

    def _evaluate(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What this node's value was in the example forward, or `UNKNOWN`."""
        if kind == "call_module":
            return next(self._outputs[id(look_up(self.root, target))], UNKNOWN)
        if kind == "get_attr":
            return _meta_leaf(look_up(self.root, target))
        values, keyword_values = map_structure(_value_of, (args, kwargs))
        if any(isinstance(leaf, Unknown) for leaf in leaves((values, keyword_values))):
            return UNKNOWN
        if target is F.batch_norm:  # gives its like; on meta tensors torch works that out in Python, slowly
            return torch.empty_like(values[0])
        if kind == "call_method":
            return getattr(values[0], target)(*values[1:], **keyword_values)
        return target(*values, **keyword_values)


def _value_of(leaf: Any) -> Any:
    if issubclass(type(leaf), fx.Proxy):
        return leaf.value
    if isinstance(leaf, slice):
        return slice(_value_of(leaf.start), _value_of(leaf.stop), _value_of(leaf.step))
    return _meta_leaf(leaf)


def _meta_leaf(leaf: Any) -> Any:
    return to_meta(leaf) if isinstance(leaf, torch.Tensor) else leaf
