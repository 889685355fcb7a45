"""A training step of YOLOv8n in mixed precision: plain, with SimAM injected, and with SimAM as rows of its YAML.

    python -m benchmarks yolo [--device cuda] [--quick] [--json FILE] [--markdown FILE]

SimAM follows every C2f. Rows are what users write by hand: a layer of the network's own list, without any hook, here
of this package's module and of the popular form. Forward and loss run under autocast, as in ultralytics' trainer:
float16 with a scaled gradient on a GPU, bfloat16 on a CPU. Before the timing, injected and by hand must give the same
loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.measuring import Times, measure, shown
from benchmarks.options import parse, publish, tabulate
from benchmarks.popular import PopularSimAM
from simam_inject import SimAM, inject
from simam_inject.adapters import network_of
from simam_inject.bench.measuring import bytes_kept, peak_bytes
from simam_inject.zoo import build

BLOCK = "C2f"
E_LAMBDA = 1e-4
PLAIN, INJECTED, ROWS = "plain", "SimAM, injected", "SimAM, rows by hand"
BASES = (PLAIN, ROWS)
ROUNDS = 15
BOXES = 8
"""Objects of an image."""

Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Size:
    """Of one training batch."""

    images: int
    pixels: int


def main(argv: list[str]) -> int:
    options = parse("yolo", __doc__, argv)
    size = size_for(options.device, is_quick=options.quick)
    rows = run(size, options.device, 3 if options.quick else ROUNDS)
    head = ["YOLOv8n, training step", "ms", *(f"/ {base}" for base in BASES), "kept for backward, MB", "peak, MB"]
    cells = [
        [row["variant"], f"{row['seconds'] * 1e3:.1f}", *(row[base]["shown"] for base in BASES)]
        + ["" if row[name] is None else f"{row[name] / 1e6:.1f}" for name in ("kept", "peak")]
        for row in rows
    ]
    dtype = str(_dtype(options.device)).removeprefix("torch.")
    note = f"Batch {size.images}, {size.pixels} px, {dtype} autocast: median [quartiles] of per-round ratios."
    publish(options, "YOLOv8n, a training step in mixed precision", tabulate(head, cells), [note], rows)
    return 0


def size_for(device: torch.device, *, is_quick: bool) -> Size:
    if device.type == "cuda":
        return Size(8 if is_quick else 32, 640)
    return Size(1, 64) if is_quick else Size(2, 320)


def run(size: Size, device: torch.device, rounds: int) -> list[dict[str, object]]:
    """Check and time all variants."""
    networks = {name: network.train() for name, network in variants()}
    _compare_losses(networks[INJECTED], networks[ROWS])
    batch = _batch(size, device)
    networks = {name: network.to(device) for name, network in networks.items()}
    steps = {name: _make_step(network, batch, device) for name, network in networks.items()}
    times = measure(steps, device, rounds)
    return [
        {
            "variant": name,
            "seconds": times.of(name).median,
            "kept": bytes_kept(network, lambda network=network: _loss(network, batch, device)),
            "peak": peak_bytes(steps[name], device),
        }
        | {base: _ratio(times, name, base) for base in BASES}
        for name, network in networks.items()
    ]


def variants() -> Iterator[tuple[str, nn.Module]]:
    """Names and networks, all with the same weights."""
    from ultralytics.cfg import get_cfg

    torch.manual_seed(0)
    plain = network_of(build("yolov8n").model)
    plain.args = get_cfg()  # the weights of the loss, which the trainer sets
    yield PLAIN, plain
    yield INJECTED, inject(copy.deepcopy(plain), f"after {BLOCK}", verify=False)
    yield ROWS, with_rows(plain, SimAM)
    yield "popular form, rows by hand", with_rows(plain, PopularSimAM)


def with_rows(plain: nn.Module, attention: type[nn.Module]) -> nn.Module:
    """The network that ultralytics builds from the YAML of `plain` with a row for an attention after each block."""
    from ultralytics.nn import tasks

    layout = copy.deepcopy(plain.yaml)
    rows: list[list[object]] = []
    stock: list[int] = []  # where each row of the YAML is now
    result: list[int] = []  # and which row returns what others read from it

    def moved(source: int) -> int:
        return source if source == -1 else result[source]

    for source, count, module, arguments in layout["backbone"] + layout["head"]:
        stock.append(len(rows))
        sources = [moved(one) for one in source] if isinstance(source, list) else moved(source)
        rows.append([sources, count, module, arguments])
        if module == BLOCK:
            rows.append([-1, 1, "SimAM", [E_LAMBDA]])
        result.append(len(rows) - 1)
    layout |= {"backbone": rows, "head": []}
    with mock.patch.object(tasks, "SimAM", attention, create=True):  # rows name what this module imports
        twin = type(plain)(layout, verbose=False)
    for layer, index in zip(plain.model, stock, strict=True):
        twin.model[index].load_state_dict(layer.state_dict())
    twin.args = plain.args
    return twin


def _batch(size: Size, device: torch.device) -> Batch:
    """Random images and boxes, as ultralytics' loader gives them."""
    count = size.images * BOXES
    centres, sides = 0.3 + 0.4 * torch.rand(count, 2), 0.1 + 0.4 * torch.rand(count, 2)
    batch = {
        "img": torch.rand(size.images, 3, size.pixels, size.pixels),
        "batch_idx": torch.arange(size.images).repeat_interleave(BOXES).float(),
        "cls": torch.randint(80, (count, 1)).float(),
        "bboxes": torch.cat([centres, sides], 1),
    }
    return {name: value.to(device) for name, value in batch.items()}


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def _loss(network: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    with torch.autocast(device.type, _dtype(device)):
        loss: Tensor = network(batch)[0].sum()
    return loss


def _compare_losses(one: nn.Module, other: nn.Module) -> None:
    """Raise unless two networks are the same; on copies, since a loss in train mode moves the statistics of norms."""
    batch = _batch(Size(1, 64), torch.device("cpu"))
    with torch.no_grad():
        losses = [copy.deepcopy(network)(batch)[0] for network in (one, other)]
    if not torch.allclose(*losses, rtol=1e-4):
        raise RuntimeError(f"the network by hand is another: its loss is {losses[1]} and not {losses[0]}")


def _make_step(network: nn.Module, batch: Batch, device: torch.device) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def step() -> None:
        optimizer.zero_grad()
        scaler.scale(_loss(network, batch, device)).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _ratio(times: Times, name: str, base: str) -> dict[str, object]:
    ratio = times.ratio(name, base)
    return asdict(ratio) | {"shown": "" if name == base else shown(ratio)}
