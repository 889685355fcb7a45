"""Train an image classifier with SimAM, on one CPU, one GPU or several.

    python examples/train_classifier.py resnet50 --data imagenet/ --recipe paper --out runs/r50
    torchrun --nproc-per-node 8 examples/train_classifier.py resnet50 --data imagenet/ --recipe paper --out runs/r50

`--data` is a folder with `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, or `cifar10:DIR` for a dataset of torchvision. The
order is important: build, inject, convert to SyncBatchNorm, EMA copy, DistributedDataParallel, torch.compile.

For a trained network, `--pretrained` or `--weights FILE` with `--warm-start` fits a gain for each SimAM, prints the
accuracy without SimAM, with it and with the gains, and raises the strength from 0 over a fifth of the training.

Written to OUT: `log.csv` (one row per epoch), `last.pt` (for `--resume`; state dicts only) and `best.safetensors`
(weights and recipe of the best EMA model; read by `simam_inject.persist.load`).
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchvision import datasets

from simam_inject import InjectError, inject, injected, plan
from simam_inject.compare.training import (
    IMAGENET,
    Images,
    Trainer,
    Training,
    make_loaders,
    make_transforms,
    open_folder,
)
from simam_inject.errors import CompareError
from simam_inject.persist import save
from simam_inject.warmup import Ramp, calibrate, set_strength
from simam_inject.zoo import build, load_weights

TORCHVISION = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
LOG_FIELDS = ("epoch", "rate", "train_loss", "val_loss", "top1", "ema_top1", "images_per_second")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train an image classifier with SimAM.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("model", help="resnet50, timm:NAME, torchvision:NAME, FILE.py:FACTORY")
    add("--data", required=True, help="folder with train/ and val/, or cifar10:DIR, cifar100:DIR")
    add("--recipe", help="a shipped recipe, a YAML file or a selector; default: train without SimAM")
    add("--out", type=Path, default=Path("runs/classifier"), help="folder of the log, checkpoints and weights")
    add("--pretrained", action="store_true", help="start from the library's weights")
    add("--weights", type=Path, metavar="FILE", help="start from these weights: .safetensors, or a state_dict in .pth")
    add("--warm-start", action="store_true", help="fit gains to the weights, and raise the strength of SimAM from 0")
    add("--epochs", type=int, default=90)
    add("--batch", type=int, default=64, help="images per process")
    add("--size", type=int, default=224, help="size of the training images")
    add(
        "--rate",
        type=float,
        default=0.1,
        help="learning rate for a batch of 256 images; scaled to the actual batch size",
    )
    add("--warmup", type=int, default=5, help="number of warm-up epochs")
    add("--decay", type=float, default=1e-4, help="weight decay; not applied to norm layers and biases")
    add("--smoothing", type=float, default=0.1, help="label smoothing")
    add("--ema", type=float, default=0.999, help="decay of the moving average of the weights, per step")
    add("--clip", type=float, default=5.0, help="maximum norm of the gradient")
    add("--steps", type=int, help="maximum number of steps per epoch")
    loaders = min(8, os.cpu_count() or 1)
    add("--workers", dest="loaders", type=int, default=loaders, help="data-loading processes per training process")
    add("--seed", type=int, default=0)
    on_gpu = torch.cuda.is_available()
    add("--amp", action=argparse.BooleanOptionalAction, default=on_gpu, help="train with bfloat16 autocast")
    add("--compile", action=argparse.BooleanOptionalAction, default=on_gpu, help="torch.compile")
    add("--sync-bn", action=argparse.BooleanOptionalAction, default=False, help="use SyncBatchNorm")
    add("--resume", action="store_true", help="continue from OUT/last.pt if it exists")
    add("--download", action="store_true", help="download the torchvision dataset if necessary")
    add("--export", metavar="FILE", help="export the EMA model at the end: net.onnx, net.pt2 or net.torchscript")
    options = parser.parse_args(arguments)
    if options.warm_start and not options.recipe:
        parser.error("--warm-start needs a --recipe")
    return options


@dataclass(frozen=True, slots=True)
class Process:
    """This process among all."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The values added up over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def share(self, *modules: nn.Module) -> None:
        """Give all processes the batch statistics of the first, which are the ones that are kept."""
        for buffer in (buffer for module in modules for buffer in module.buffers() if self.count > 1):
            dist.broadcast(buffer, 0)

    def wrap(self, network: nn.Module) -> nn.Module:
        """What averages the gradients over all processes."""
        if self.count == 1:
            return network
        return DistributedDataParallel(network, [self.device] if self.device.type == "cuda" else None)


@contextmanager
def joined() -> Iterator[Process]:
    """Join the group that torchrun started, or be alone."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield Process(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Process(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def open_images(options: argparse.Namespace, process: Process) -> Images:
    name, colon, folder = options.data.partition(":")
    normalization = build(options.model).normalization or IMAGENET
    if not colon or name not in TORCHVISION:
        return open_folder(options.data, options.size, normalization=normalization)
    if options.download and process.is_first:
        TORCHVISION[name](folder, download=True)
    if process.count > 1:
        dist.barrier()
    varied, plain = make_transforms(options.size, augment=True, normalization=normalization)
    train = TORCHVISION[name](folder, train=True, transform=varied)
    return Images(train, TORCHVISION[name](folder, train=False, transform=plain), tuple(train.classes))


def make_network(options: argparse.Namespace, process: Process, classes: int) -> nn.Module:
    torch.manual_seed(options.seed)
    built = build(options.model, pretrained=options.pretrained, num_classes=classes)
    if options.weights:
        built = load_weights(built, options.weights, new_head=True)
    network: nn.Module = built.model
    if options.recipe:
        example = torch.zeros(1, 3, options.size, options.size)
        skips = plan(network, options.recipe, example_inputs=example).skips if process.is_first else ()
        for skip in skips:
            if skip.hit:  # e.g. a map that is 1x1 at this size
                print(f"skipped {skip.path}: {skip.reason}")
        inject(network, options.recipe, example_inputs=example)
    if options.sync_bn and process.device.type == "cuda":  # torch has it for GPUs only
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network.to(process.device, memory_format=torch.channels_last)


def warm_start(
    network: nn.Module, loader: DataLoader[Any], val_loader: DataLoader[Any], process: Process, console: Console
) -> None:
    """Fit the gains on a thousand images, and print the accuracy on the way. Leaves the strength at 0."""
    set_strength(network, 0.0)
    plain = accuracy(network, val_loader, process)
    set_strength(network, 1.0)
    cold = accuracy(network, val_loader, process)
    found = calibrate(network, islice(loader, max(1, 1024 // (loader.batch_size or 1))), norms=False)
    console.print(str(found), highlight=False)
    warm = accuracy(network, val_loader, process)
    console.print(f"top1 without SimAM {plain:.6f}  with SimAM {cold:.6f}  with its gains {warm:.6f}")
    set_strength(network, 0.0)


@torch.inference_mode()
def accuracy(network: nn.Module, loader: DataLoader[Any], process: Process) -> float:
    network.eval()
    counts = torch.zeros(2, device=process.device)
    for images, labels in loader:
        right = network(images.to(process.device)).argmax(1) == labels.to(process.device)
        counts += torch.stack([right.sum(), torch.ones_like(right).sum()])
    correct, seen = process.sum(counts).tolist()
    return correct / seen


class Run:
    """A trainer with what is kept of it in files."""

    def __init__(self, options: argparse.Namespace, process: Process, trainer: Trainer) -> None:
        self.options, self.process, self.trainer, self.best = options, process, trainer, -1.0
        self.parts: dict[str, Any] = {
            "network": trainer.network,
            "ema": trainer.ema,
            "optimizer": trainer.optimizer,
            "schedule": trainer.schedule,
        }
        self.ramp = None
        if options.warm_start:
            steps = max(1, options.epochs * trainer.steps // 5)
            self.ramp = self.parts["ramp"] = Ramp(trainer.network, trainer.ema, steps=steps)

    def state(self) -> dict[str, Any]:
        names = {"model": self.options.model, "recipe": self.options.recipe}
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        gains = [site.gain for site in injected(self.trainer.network)]
        return {**names, "epoch": self.trainer.epoch, "best": self.best, "gains": gains, **parts}

    def restore(self, state: dict[str, Any]) -> None:
        for name in ("model", "recipe"):
            if state[name] != getattr(self.options, name):
                raise SystemExit(f"last.pt has {name} {state[name]!r}, this command {getattr(self.options, name)!r}")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        for network in (self.trainer.network, self.trainer.ema.module):
            for site, gain in zip(injected(network), state["gains"], strict=True):
                network.get_submodule(site.module).gain = gain
        self.trainer.epoch, self.best = state["epoch"], state["best"]


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace the file at the end, so that a run that is killed leaves the last whole one."""
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def write_row(path: Path, row: dict[str, Any]) -> None:
    """Append to the log; rows of this epoch and later ones, from before a resume, are dropped."""
    rows = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [old for old in csv.DictReader(file) if int(old["epoch"]) < row["epoch"]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, LOG_FIELDS)
        writer.writeheader()
        writer.writerows([*rows, row])


def run(options: argparse.Namespace, process: Process) -> None:
    try:
        train(options, process)
    except CompareError as error:
        raise SystemExit(str(error)) from None


def train(options: argparse.Namespace, process: Process) -> None:
    console = Console(quiet=not process.is_first, soft_wrap=True)
    options.out.mkdir(parents=True, exist_ok=True)
    images = open_images(options, process)
    training = Training(
        **{field.name: getattr(options, field.name) for field in fields(Training) if field.name != "augment"}
    )
    loader, val_loader = make_loaders(images, training, options.seed, rank=process.rank, processes=process.count)
    network = make_network(options, process, len(images.classes))
    sites, classes = len(injected(network)), len(images.classes)
    console.print(f"{options.model}: {sites} SimAM sites, {classes} classes, {len(images.train)} images")
    if options.warm_start:
        warm_start(network, loader, val_loader, process, console)  # before the network is copied, wrapped or compiled
    trainer = Trainer(
        *(network, loader, training, process.device, options.seed + process.rank),
        wrapped=process.wrap(network),
        processes=process.count,
    )
    state = Run(options, process, trainer)
    last = options.out / "last.pt"
    if options.resume and last.exists():
        state.restore(torch.load(last, map_location=process.device, weights_only=True))
        console.print(f"resumed after epoch {state.trainer.epoch}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=console, transient=True) as progress:
        while state.trainer.epoch < options.epochs:
            run_epoch(state, val_loader, progress, console)
    if options.export and process.is_first:
        from simam_inject.export import export

        example = torch.zeros(1, 3, options.size, options.size, device=process.device)
        report = export(state.trainer.result, options.export, example_inputs=example)
        console.print(f"{report.path}: {report.live} sites live, {report.difference:.1e} from eager")


def judge(state: Run, network: nn.Module, loader: DataLoader[Any]) -> tuple[float, float]:
    """Mean loss and top-1 accuracy over all processes."""
    loss, right = state.trainer.validate(network, loader)
    counts = torch.stack([loss, right.sum().double(), torch.ones_like(right).sum().double()])
    loss_sum, correct, seen = state.process.sum(counts).tolist()
    return loss_sum / seen, correct / seen


def run_epoch(state: Run, val_loader: DataLoader[Any], progress: Progress, console: Console) -> None:
    options, trainer, process = state.options, state.trainer, state.process
    task = progress.add_task(f"epoch {trainer.epoch + 1}", total=trainer.steps, loss="")

    def show(step: int, loss: Tensor) -> None:
        if step % 10 == 0:  # reading it waits for the GPU
            progress.update(task, loss=f"loss {loss.item():.3f}")
        progress.advance(task)
        if state.ramp is not None:
            state.ramp.step()

    start = time.perf_counter()
    train_loss = process.sum(trainer.train(show)).item() / process.count
    seconds = time.perf_counter() - start
    progress.remove_task(task)
    if not math.isfinite(train_loss):
        raise SystemExit(f"the loss of epoch {trainer.epoch} is {train_loss}; try a lower --rate or more --warmup")
    process.share(trainer.network, trainer.ema)
    val_loss, top1 = judge(state, trainer.network, val_loader)
    _, ema_top1 = judge(state, trainer.ema.module, val_loader)
    values = (
        trainer.epoch,
        f"{trainer.schedule.get_last_lr()[0]:.6g}",
        f"{train_loss:.6f}",
        f"{val_loss:.6f}",
        f"{top1:.6f}",
        f"{ema_top1:.6f}",
        f"{trainer.steps * options.batch * process.count / seconds:.1f}",
    )
    row = dict(zip(LOG_FIELDS, values, strict=True))
    console.print("  ".join(f"{name} {value}" for name, value in row.items()))
    is_best = ema_top1 > state.best
    state.best = max(ema_top1, state.best)
    if process.is_first:
        write_row(options.out / "log.csv", row)
        write_state(options.out / "last.pt", state.state())
        if is_best:
            save(trainer.ema.module, options.out / "best.safetensors")


def main() -> None:
    options = parse_arguments()
    torch.backends.cudnn.benchmark = True
    try:
        with joined() as process:
            run(options, process)
    except InjectError as error:
        sys.exit(f"error: {error}")
    if process.count > 1 and process.device.type == "cpu":  # gloo's threads may abort the interpreter's shutdown
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
