"""A whole ResNet-50: plain, with SimAM injected where the authors put it, and with other attentions.

    python -m benchmarks model [--device cuda] [--quick] [--no-compile] [--json FILE] [--markdown FILE]

Compiled networks come first, and results are written after each setting, should time run out. Differences below the
spread of the plain network against itself, which the table shows, are noise; on a CPU `additive` is steadier.
"""

import copy
from dataclasses import asdict
from typing import Any

import torch
from rich.progress import track

from benchmarks.measuring import measure, shown
from benchmarks.options import parse, publish, tabulate
from benchmarks.resnet import RECIPE, Setting, attended, attentions, make_step, plain, settings, sites
from simam_inject import inject
from simam_inject.bench.measuring import Quartiles

PLAIN, TWIN = "plain", "plain again"
ROUNDS = 11
SAMPLE_SECONDS = 0.06
"""Several steps, so that a GPU has the next one before it has finished the last."""


def main(argv: list[str]) -> int:
    options = parse("model", __doc__, argv)
    modes = [(training, compiled) for compiled in (True, False) for training in (False, True)]
    if options.no_compile or options.quick:
        modes = [mode for mode in modes if not mode[1]]
    rows = []
    chosen = settings(options.device, is_quick=options.quick)[:2]
    for setting, (training, compiled) in track([(setting, mode) for setting in chosen for mode in modes], "timing"):
        rows.append(run(setting, options.device, is_training=training, is_compiled=compiled))
        notes = ["Time against the plain network: median [quartiles] of per-round ratios."]
        publish(options, "ResNet-50, end to end", _table(rows), notes, rows)
    return 0


def _table(rows: list[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    cells = []
    for row in rows:
        ratios = [shown(Quartiles(**row["ratios"][name])) if name in row["ratios"] else "" for name in names]
        cells.append([row["setting"], f"{row['seconds'] * 1e3:.0f}", *ratios])
    return tabulate(["ResNet-50", "plain ms", *names], cells)


def run(setting: Setting, device: torch.device, *, is_training: bool, is_compiled: bool) -> dict[str, Any]:
    """Time all variants in one interleaved run. Compiled, only SimAM's two forms: a compilation takes a minute each."""
    torch._dynamo.reset()
    model, image = setting.place(plain(), device), setting.image(device)
    variants = {PLAIN: model, TWIN: copy.deepcopy(model), "SimAM": inject(copy.deepcopy(model), RECIPE, verify=False)}
    for name, place, make in attentions():
        if name != "SimAM" and (not is_compiled or name.startswith("SimAM")):
            variants[name] = setting.place(attended(model, sites(place), make), device)
    if is_compiled:
        variants = {name: torch.compile(one.train(is_training)) for name, one in variants.items()}
    steps = {name: make_step(one.train(is_training), image, is_training=is_training) for name, one in variants.items()}
    times = measure(steps, device, ROUNDS, SAMPLE_SECONDS)
    ratios = {name: times.ratio(name, PLAIN) for name in variants if name != PLAIN}
    mode = f"{'training step' if is_training else 'inference'}, {'compiled' if is_compiled else 'eager'}"
    return {
        "setting": f"{mode}, {setting.name}",
        "seconds": times.of(PLAIN).median,
        "ratios": {name: asdict(one) for name, one in ratios.items() if one is not None},
    }
