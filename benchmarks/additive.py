"""What 16 attentions add to a ResNet-50: they alone, on the network's real activations, against the plain network.

    python -m benchmarks additive [--device cuda] [--quick] [--json FILE] [--markdown FILE]

On a CPU steadier than comparing whole networks, whose own noise is larger than most attentions. On a GPU, launches that
a network hides behind its convolutions are counted in full: `model` is the one to use there.
"""

from collections.abc import Callable
from dataclasses import asdict

import torch
from rich.progress import track
from torch import Tensor, nn

from benchmarks.measuring import measure, shown
from benchmarks.options import parse, publish, tabulate
from benchmarks.resnet import Setting, attentions, make_step, plain, settings, sites
from simam_inject.bench.measuring import Quartiles

NETWORK = "network"
SAMPLE_SECONDS = 0.05
"""Of the attentions: not so much shorter than the network that noise meets only one of the two."""


def main(argv: list[str]) -> int:
    options = parse("additive", __doc__, argv)
    chosen = [(setting, mode) for setting in settings(options.device, is_quick=options.quick) for mode in (False, True)]
    rows = [run(setting, options.device, is_training=mode) for setting, mode in track(chosen, "timing")]
    names = list(rows[0]["overhead"])
    head = ["ResNet-50", "plain ms", *names]
    cells = []
    for row in rows:
        shares = [shown(Quartiles(**row["overhead"][name]), 100, 1) for name in names]
        cells.append([row["setting"], f"{row['seconds'] * 1e3:.0f}", *shares])
    notes = ["Added time in percent of the plain network: median [quartiles] of per-round ratios. Eager mode."]
    publish(options, "ResNet-50, what 16 attentions add", tabulate(head, cells), notes, rows)
    return 0


def run(setting: Setting, device: torch.device, *, is_training: bool) -> dict[str, object]:
    """Time the network and every set of 16 attentions in one interleaved run."""
    model = setting.place(plain(), device).train(is_training)
    image = setting.image(device)
    step = make_step(model, image, is_training=is_training)
    variants: dict[str, Callable[[], object]] = {NETWORK: step}
    activations = {place: _activations(model, image, sites(place)) for place in ("conv2", "bn3")}
    for name, place, make in attentions():
        pairs = []
        for x in activations[place]:
            module = setting.place(make(x.shape[1]), device).train(is_training)
            pairs.append((module, x.detach().requires_grad_(is_training), torch.randn_like(x)))
        variants[name] = _modules_step(pairs, is_training=is_training)
    times = measure(variants, device, sample=SAMPLE_SECONDS)
    overhead = {name: times.ratio(name, NETWORK) for name in variants if name != NETWORK}
    return {
        "setting": f"{'training step' if is_training else 'inference'}, {setting.name}",
        "seconds": times.of(NETWORK).median,
        "overhead": {name: None if one is None else asdict(one) for name, one in overhead.items()},
    }


def _modules_step(pairs: list[tuple[nn.Module, Tensor, Tensor]], *, is_training: bool) -> Callable[[], object]:
    if not is_training:

        def infer() -> None:
            with torch.no_grad():
                for module, x, _ in pairs:
                    module(x)

        return infer
    weights = [[x, *module.parameters()] for module, x, _ in pairs]

    def train() -> None:
        for (module, x, grad), inputs in zip(pairs, weights, strict=True):
            torch.autograd.grad(module(x), inputs, grad)

    return train


def _activations(model: nn.Module, image: Tensor, paths: list[str]) -> list[Tensor]:
    """What the modules at `paths` return for `image`."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: found.__setitem__(path, output.detach().clone())

    hooks = [model.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return [found[path] for path in paths]
