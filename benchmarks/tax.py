"""What the engine costs a user: injected networks against the same networks written by hand with SimAM in them.

    python -m benchmarks tax [--quick] [--no-compile] [--json FILE] [--markdown FILE]

By hand: a subclass of the block whose forward ends in `self.attention(...)`, and no hook or check at all. Also the
time to unpickle a YOLOv8n with SimAM after every convolution, to compile both, and that of the checks ("guards") which
`torch.compile` makes before each call: of the stock network in a process without an injection, of both, and of the
injected one without checks of modules. YOLO needs ultralytics.
"""

from __future__ import annotations

import copy
import functools
import pickle
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
import torch._inductor.config
from torch import Tensor, nn

from benchmarks.measuring import measure, shown
from benchmarks.options import parse, publish, tabulate
from simam_inject import SimAM, inject
from simam_inject.adapters import network_of
from simam_inject.zoo import build

NETWORKS = {"ResNet-18": ("torchvision:resnet18", "BasicBlock", 224), "YOLOv8n": ("yolov8n", "C2f", 320)}
E_LAMBDA = 1e-4
ROUNDS = 41
COMPILATIONS = 3
WITHOUT_MODULES = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}


def main(argv: list[str]) -> int:
    options = parse("tax", __doc__, argv)
    rows = [_measure(name, options) for name in NETWORKS]
    rows.append(_unpickling())
    head = ["network", "eager", "compiled", "compile time"]
    cells = [
        [str(row["network"]), *(str(row.get(name, "")) for name in ("eager", "compiled", "compile_time"))]
        for row in rows
    ]
    notes = [
        "Injected against by hand: median [quartiles] of per-round ratios; compile time without caches.",
        f"Unpickling {rows[-1]['network']}: {rows[-1]['seconds']:.3f} s (median of {ROUNDS // 4}).",
    ]
    if not options.no_compile:
        checks = _checks()
        rows.append({"network": "ResNet-18", "checks_seconds": checks})
        each = ", ".join(f"{name} {1e6 * seconds:.0f}" for name, seconds in checks.items())
        notes.append(f"Microseconds of a compiled ResNet-18 that computes nothing: {each}.")
    publish(options, "The tax of the engine", tabulate(head, cells[:-1]), notes, rows)
    return 0


def by_hand(model: nn.Module, block: str) -> nn.Module:
    """A copy of the network whose blocks of this class end in a SimAM of their own."""
    twin = copy.deepcopy(model)
    for module in list(twin.modules()):
        if type(module).__name__ == block:
            stock = type(module)

            class Attended(stock):  # type: ignore[misc, valid-type]
                def forward(self, x: Tensor) -> Tensor:
                    return self.attention(super().forward(x))  # type: ignore[no-any-return]

            module.__class__ = Attended
            module.attention = SimAM(E_LAMBDA)
    return twin


def _variants(name: str) -> tuple[nn.Module, dict[str, nn.Module], Tensor]:
    """The stock network, the two with SimAM, and an image."""
    source, block, pixels = NETWORKS[name]
    torch.manual_seed(0)
    model = network_of(build(source).model).eval()
    injected = inject(copy.deepcopy(model), f"after {block}", verify=False)
    return model, {"hand": by_hand(model, block), "injected": injected}, torch.rand(1, 3, pixels, pixels)


def _measure(name: str, options: object) -> dict[str, object]:
    _, variants, x = _variants(name)
    with torch.no_grad():
        results = [one(x) for one in variants.values()]
        if not torch.equal(_first(results[0]), _first(results[1])):
            raise RuntimeError(f"{name}: the network by hand is another")
        row: dict[str, object] = {"network": name}
        times = measure({key: lambda one=one: one(x) for key, one in variants.items()}, torch.device("cpu"), ROUNDS)
        row |= _ratio("eager", times.ratio("injected", "hand"))
        if getattr(options, "no_compile", False):
            return row
        compiled = {}
        spent: dict[str, list[float]] = {key: [] for key in variants}
        for _ in range(COMPILATIONS):
            torch._dynamo.reset()
            for key, one in variants.items():
                started = time.process_time()
                with torch._inductor.config.patch(force_disable_caches=True):
                    compiled[key] = torch.compile(one)
                    compiled[key](x)
                spent[key].append(time.process_time() - started)
        times = measure({key: lambda one=one: one(x) for key, one in compiled.items()}, torch.device("cpu"), ROUNDS)
        row |= _ratio("compiled", times.ratio("injected", "hand"))
        pairs = list(zip(spent["injected"], spent["hand"], strict=True))[1:]  # the first pair loads the compiler
        ratio = statistics.median(injected / hand for injected, hand in pairs)
        return row | {"compile_time": f"{ratio:.2f}", "compile_seconds": spent}


@torch.no_grad()
def _checks() -> dict[str, float]:
    """Seconds of a compiled call that computes nothing: what `torch.compile` checks before each call."""
    stock, variants, x = _variants("ResNet-18")

    def backend(graph: torch.fx.GraphModule, examples: list[object], **_: object) -> Callable[..., object]:
        real = (torch.zeros(one.shape, dtype=one.dtype) if isinstance(one, Tensor) else one for one in examples)
        outputs = graph(*real)
        return lambda *_: outputs

    spent = {}
    for name, network, options in (
        ("stock", stock, None),
        ("by hand", variants["hand"], None),
        ("injected", variants["injected"], None),
        ("injected, without checks of modules", variants["injected"], WITHOUT_MODULES),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(network, backend=backend, dynamic=False, options=options)
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=name == "stock"):  # as before the first injection
            compiled(x)
        spent[name] = measure({name: functools.partial(compiled, x)}, torch.device("cpu"), ROUNDS).of(name).median
    return spent


def _ratio(name: str, found: object) -> dict[str, object]:
    return {name: shown(found), f"{name}_quartiles": asdict(found)}  # type: ignore[arg-type, call-overload]


def _first(output: object) -> Tensor:
    while not isinstance(output, Tensor):
        output = output[0]  # type: ignore[index]
    return output


def _unpickling() -> dict[str, object]:
    model = network_of(build("yolov8n").model)
    inject(model, {"rules": [{"path": "*", "after": {"op": "conv2d"}}]}, verify=False)
    data = pickle.dumps(model)
    spent = []
    for _ in range(ROUNDS // 4):
        started = time.process_time()
        pickle.loads(data)
        spent.append(time.process_time() - started)
    return {"network": "YOLOv8n with SimAM after every convolution", "seconds": statistics.median(spent)}
