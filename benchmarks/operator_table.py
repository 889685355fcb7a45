"""`micro` and `train`: the operator on single maps, against the popular form, a clone, and both compiled.

`mixed` is the operator with a strength of 0.5 and a gain of 1.3.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import asdict

import torch
from rich.progress import track
from torch import Tensor, nn

from benchmarks.cases import Case, cases
from benchmarks.measuring import Rotation, Times, geometric_mean, measure, shown
from benchmarks.options import tabulate
from benchmarks.popular import PopularSimAM
from benchmarks.truth import pass_gate
from simam_inject import SimAM, simam
from simam_inject.bench.measuring import bytes_kept

E_LAMBDA = 1e-4
RATIOS = {
    "simam / popular": ("simam", "popular"),
    "simam / clone": ("simam", "clone"),
    "mixed / simam": ("mixed", "simam"),
    "compiled / popular": ("simam compiled", "popular"),
    "compiled / popular compiled": ("simam compiled", "popular compiled"),
}
SMALL_BYTES = 16 << 20
"""Below this a GPU waits for launches, and is also timed replaying a CUDA graph."""

Operator = Callable[[Tensor], Tensor]


def run_case(case: Case, device: torch.device, *, is_training: bool) -> dict[str, object]:
    """Gate and time one case."""
    torch._dynamo.reset()
    x = case.make(device, is_training)
    operators: dict[str, Operator] = {"popular": PopularSimAM(E_LAMBDA), "simam": SimAM(E_LAMBDA)}
    mixed = functools.partial(simam, e_lambda=E_LAMBDA, strength=0.5, gain=1.3)
    if case.is_compiled:
        operators |= {f"{name} compiled": torch.compile(one, dynamic=False) for name, one in operators.items()}
    pass_gate({name: one for name, one in operators.items() if name.startswith("simam")}, x, E_LAMBDA)
    operators |= {"clone": torch.clone, "mixed": mixed}
    grad = torch.randn_like(x)
    variants = {name: _runner(one, Rotation(x), grad if is_training else None) for name, one in operators.items()}
    if device.type == "cuda" and x.nbytes < SMALL_BYTES and not is_training:
        variants |= {f"{name} replayed": _replayed(operators[name], x) for name in ("popular", "simam")}
    times = measure(variants, device)
    return {
        "case": case.name,
        "dtype": case.dtype_name,
        "seconds": {name: asdict(times.of(name)) for name in times.seconds},
        "ratios": _ratios(times),
        "kept": _kept(operators, x) if is_training else {},
    }


def _runner(operator: Operator, inputs: Rotation, grad: Tensor | None) -> Callable[[], object]:
    if grad is None:

        def infer() -> object:
            with torch.no_grad():
                return operator(inputs())

        return infer

    def train() -> object:
        x = inputs()
        return torch.autograd.grad(operator(x), x, grad)

    return train


def _replayed(operator: Operator, x: Tensor) -> Callable[[], object]:
    """The device's own time, without launches: one recorded graph."""
    with torch.no_grad():
        operator(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            operator(x)
    return graph.replay


def _ratios(times: Times) -> dict[str, dict[str, object] | None]:
    found = {name: times.ratio(*pair) for name, pair in RATIOS.items()}
    found["replayed: simam / popular"] = times.ratio("simam replayed", "popular replayed")
    return {
        name: None if ratio is None else asdict(ratio) | {"refused": ratio.is_noisy, "shown": shown(ratio)}
        for name, ratio in found.items()
    }


def _kept(operators: dict[str, Operator], x: Tensor) -> dict[str, float]:
    """Bytes kept for the backward, as a multiple of x."""
    return {
        name: bytes_kept(nn.Module(), lambda one=one: one(x)) / x.nbytes
        for name, one in operators.items()
        if name not in ("clone", "mixed")
    }


def run(options: argparse.Namespace, *, is_training: bool) -> tuple[list[str], list[str], list[dict[str, object]]]:
    """Run all cases: table, notes, rows."""
    chosen = list(cases(options.device, is_quick=options.quick, is_compiled=not options.no_compile))
    rows = [run_case(case, options.device, is_training=is_training) for case in track(chosen, "timing")]
    columns = [name for name in rows[0]["ratios"] if any(row["ratios"][name] for row in rows)]
    head = ["map", "popular ms", *columns, *(["bytes kept / x"] if is_training else [])]
    lines = []
    for row in rows:
        cells = [row["case"], f"{row['seconds']['popular']['median'] * 1e3:.2f}"]
        cells += [row["ratios"][name]["shown"] if row["ratios"][name] else "" for name in columns]
        if is_training:
            cells.append(", ".join(f"{name} {value:.2f}" for name, value in row["kept"].items()))
        lines.append(cells)
    return tabulate(head, lines), _summary(rows, columns), rows


def _summary(rows: list[dict[str, object]], columns: list[str]) -> list[str]:
    """Geometric mean and worst of each column and dtype."""
    notes = ["Medians [quartiles] of per-round ratios; geometric mean and worst of the medians:", ""]
    for name in columns:
        parts = []
        for dtype in dict.fromkeys(row["dtype"] for row in rows):
            found = [row["ratios"][name] for row in rows if row["dtype"] == dtype and row["ratios"][name]]
            good = [ratio["median"] for ratio in found if not ratio["refused"]]
            if good:
                parts.append(
                    f"{dtype} {geometric_mean(good):.3f} (worst {max(good):.2f}, {len(good)} of {len(found)} maps)"
                )
        notes.append(f"* {name}: {'; '.join(parts)}")
    return notes
