"""The same network with other attentions: by this engine, by hand, and by what users do today. Time, memory, lost keys.

    python -m benchmarks peers [--quick] [--json FILE] [--markdown FILE]

timm's ResNet-18, after the last norm of each block: `inject(..., attention=factory)`; a Sequential around the norm; and
timm's own `block_args=dict(attn_layer=...)`. "Keys lost" counts keys of a plain checkpoint that find no place any more.
"""

from __future__ import annotations

import copy

import timm
import torch
from torch import nn

from benchmarks.measuring import measure, shown
from benchmarks.options import parse, publish, tabulate
from benchmarks.resnet import attended, make_step
from simam_inject import SimAM, inject
from simam_inject.bench.measuring import bytes_kept
from simam_inject.bench.run import peer_factory
from simam_inject.zoo.names import PEERS

SITE = "bn2"
RECIPE = {"rules": [{"block": "BasicBlock", "after": SITE}]}
NETWORK = "resnet18"


def main(argv: list[str]) -> int:
    options = parse("peers", __doc__, argv)
    image = torch.rand(4, 3, 128, 128, device=options.device)
    torch.manual_seed(0)
    plain = timm.create_model(NETWORK).to(options.device)
    keys = list(plain.state_dict())
    variants = {"plain": plain, **_variants(plain)}
    steps = {}
    for is_training in (False, True):
        runs = {
            name: make_step(one.train(is_training), image, is_training=is_training) for name, one in variants.items()
        }
        steps[is_training] = measure(runs, options.device, 11)
    rows = []
    for name, model in variants.items():
        own = set(model.state_dict())
        rows.append(
            {
                "variant": name,
                "inference": shown(steps[False].ratio(name, "plain")),
                "training": shown(steps[True].ratio(name, "plain")),
                "parameters": sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters()),
                "kept_mb": bytes_kept(model.train(), lambda model=model: model(image)) / 1e6,
                "keys_lost": sum(key not in own for key in keys),
            }
        )
    head = ["variant", "inference", "training step", "parameters more", "kept for backward, MB", "keys lost"]
    cells = [
        [row["variant"], row["inference"], row["training"], f"{row['parameters']:,}", f"{row['kept_mb']:.1f}",
         f"{row['keys_lost']} of {len(keys)}"]
        for row in rows
    ]  # fmt: skip
    publish(options, f"timm's {NETWORK} with SimAM and its peers", tabulate(head, cells), [], rows)
    return 0


def _variants(plain: nn.Module) -> dict[str, nn.Module]:
    found = {"SimAM, this engine": inject(copy.deepcopy(plain), RECIPE, verify=False)}
    norms = [path for path, _ in plain.named_modules() if path.endswith(f".{SITE}")]
    found["SimAM, by hand"] = attended(plain, norms, lambda _: SimAM())
    for name in PEERS:
        make = peer_factory(name)
        found[f"{name.upper()}, this engine"] = inject(copy.deepcopy(plain), RECIPE, verify=False, attention=make)
        found[f"{name.upper()}, by hand"] = attended(plain, norms, make)
        layer = {"gc": "gca"}.get(name, name)
        found[f"{name.upper()}, timm's attn_layer"] = timm.create_model(NETWORK, block_args={"attn_layer": layer})
    return {name: model.to(next(plain.parameters()).device) for name, model in found.items()}
