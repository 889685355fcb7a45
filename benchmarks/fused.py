"""Fused inference: what `simam_inject.fusing.optimize` saves in blocks of ResNet-50, eager.

    python -m benchmarks fused [--device cuda] [--quick] [--json FILE] [--markdown FILE]

One bottleneck of each stage with SimAM after its 3x3 convolution, and with SimAM after its last norm; the same block
unfused and fused, interleaved. Both must agree to 1e-5 before anything is timed.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from benchmarks.measuring import measure, shown
from benchmarks.options import parse, publish
from simam_inject import inject
from simam_inject.fusing import optimize

STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))
PLACES = {"SimAM > norm > relu": "after bottleneck.conv2", "norm > SimAM > add > relu": "after bottleneck.bn3"}
ROUNDS = 25


def main(argv: list[str]) -> int:
    options = parse("fused", __doc__, argv)
    stages = STAGES[1:3] if options.quick else STAGES
    batch = 8 if options.device.type == "cpu" else 256
    rows = [run(width, size, chain, batch, options.device) for width, size in stages for chain in PLACES]
    table = [
        "| block | chain | plain ms | unfused / plain | fused / plain | fused / unfused |",
        "|---|---|---|---|---|---|",
    ]
    table += [
        f"| {row['block']} | {row['chain']} | {row['seconds'] * 1e3:.2f} "
        f"| {row['unfused']} | {row['fused']} | {row['ratio']} |"
        for row in rows
    ]
    publish(options, "Fused inference", table, ["Medians [quartiles] of per-round ratios, float32, eager."], rows)
    return 0


def run(width: int, size: int, chain: str, batch: int, device: torch.device) -> dict[str, object]:
    """Time one block in three variants."""
    plain = nn.Sequential(Bottleneck(width * 4, width)).to(device).eval()
    x = torch.randn(batch, width * 4, size, size, device=device)
    unfused = inject(copy.deepcopy(plain), PLACES[chain], example_inputs=x[:1], verify=False)
    fused = copy.deepcopy(unfused)
    found = optimize(fused)
    if len(found) != 1:
        raise RuntimeError(f"{chain}: expected one chain, found {found}")
    with torch.no_grad():
        expected = unfused(x)
        error = ((fused(x) - expected).abs().max() / expected.abs().max()).item()
    if error > 1e-5:
        raise RuntimeError(f"{chain}: fused differs from unfused by {error:.2g}")
    times = measure({"plain": _step(plain, x), "unfused": _step(unfused, x), "fused": _step(fused, x)}, device, ROUNDS)
    ratios = {"unfused": times.ratio("unfused", "plain"), "fused": times.ratio("fused", "plain")}
    return {
        "block": f"{batch}x{width * 4}x{size}x{size}, width {width}",
        "chain": str(found[0].chain),
        "seconds": times.of("plain").median,
        **{name: shown(ratio) for name, ratio in ratios.items()},
        "ratio": shown(times.ratio("fused", "unfused")),
        "quartiles": {name: asdict(ratio) for name, ratio in ratios.items()},
    }


def _step(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def step() -> Tensor:
        with torch.no_grad():
            return model(x)

    return step
