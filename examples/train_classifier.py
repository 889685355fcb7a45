"""Train an image classifier with SimAM in it: the same command on one CPU, on one GPU and on many.

    python examples/train_classifier.py resnet50 --data imagenet/ --recipe paper --out runs/r50
    torchrun --nproc-per-node 8 examples/train_classifier.py resnet50 --data imagenet/ --recipe paper --out runs/r50

`--data` is a folder with `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, or `cifar10:DIR` for a dataset of torchvision. The
order that matters: build, inject, convert to SyncBatchNorm, EMA copy, DistributedDataParallel, torch.compile.

In OUT: `log.csv` (one row an epoch), `last.pt` (everything that `--resume` needs; state dicts only) and
`best.safetensors` (weights and recipe of the best EMA model; `simam_inject.persist.load` puts both back).
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, DistributedSampler, Subset
from torchvision import datasets
from torchvision.transforms import v2

from simam_inject import inject, injected, plan
from simam_inject.persist import save
from simam_inject.zoo import build

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
LOG_FIELDS = ("epoch", "rate", "train_loss", "val_loss", "top1", "ema_top1", "images_per_second")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train an image classifier with SimAM.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("model", help="resnet50, timm:NAME, torchvision:NAME, FILE.py:FACTORY")
    add("--data", required=True, help="folder with train/ and val/, or cifar10:DIR, cifar100:DIR")
    add("--recipe", help="a shipped recipe, a YAML file or a selector; without it the plain baseline is trained")
    add("--out", type=Path, default=Path("runs/classifier"), help="folder of the log, checkpoints and weights")
    add("--pretrained", action="store_true", help="start from the library's weights")
    add("--epochs", type=int, default=90)
    add("--batch", type=int, default=64, help="images per process")
    add("--size", type=int, default=224, help="side of the training images")
    add("--rate", type=float, default=0.1, help="learning rate for 256 images a step; scaled to the real number")
    add("--warmup", type=int, default=5, help="epochs of rising rate")
    add("--decay", type=float, default=1e-4, help="weight decay; norms and biases have none")
    add("--smoothing", type=float, default=0.1, help="label smoothing")
    add("--ema", type=float, default=0.999, help="decay of the moving average of the weights, per step")
    add("--clip", type=float, default=5.0, help="largest norm of the gradient")
    add("--steps", type=int, help="at most so many steps an epoch")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), help="loading processes per training process")
    add("--seed", type=int, default=0)
    on_gpu = torch.cuda.is_available()
    add("--amp", action=argparse.BooleanOptionalAction, default=on_gpu, help="bfloat16 where it is safe")
    add("--compile", action=argparse.BooleanOptionalAction, default=on_gpu, help="torch.compile")
    add("--sync-bn", action=argparse.BooleanOptionalAction, default=False, help="statistics over all GPUs")
    add("--resume", action="store_true", help="go on from OUT/last.pt if it is there")
    add("--download", action="store_true", help="fetch the torchvision dataset if it is not there")
    add("--export", metavar="FILE", help="export the EMA model at the end: net.onnx, net.pt2 or net.torchscript")
    return parser.parse_args(arguments)


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


def open_data(options: argparse.Namespace, process: Process) -> tuple[Any, Any, int]:
    """Training images, validation images, number of classes."""
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]
    varied = v2.Compose([v2.RandomResizedCrop(options.size, antialias=True), v2.RandomHorizontalFlip(), *finish])
    plain = v2.Compose([v2.Resize(options.size * 8 // 7, antialias=True), v2.CenterCrop(options.size), *finish])
    name, colon, folder = options.data.partition(":")
    if colon and name in TORCHVISION:
        if options.download and process.is_first:
            TORCHVISION[name](folder, download=True)
        if process.count > 1:
            dist.barrier()
        train = TORCHVISION[name](folder, train=True, transform=varied)
        return train, TORCHVISION[name](folder, train=False, transform=plain), len(train.classes)
    root = Path(options.data)
    missing = [part for part in ("train", "val") if not (root / part).is_dir()]
    if missing:
        raise SystemExit(f"there is no folder {root / missing[0]}; give a folder with train/ and val/, or cifar10:DIR")
    train, val = datasets.ImageFolder(root / "train", varied), datasets.ImageFolder(root / "val", plain)
    if train.classes != val.classes:
        raise SystemExit(f"{options.data}: train/ and val/ have different classes")
    return train, val, len(train.classes)


def make_loaders(
    options: argparse.Namespace, process: Process, train: Any, val: Any
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Each process reads its own part of both; of the validation set every image exactly once."""
    if len(train) < options.batch * process.count:
        raise SystemExit(f"{len(train)} training images are fewer than one step of {options.batch * process.count}")
    shared: dict[str, Any] = {
        "num_workers": options.workers,
        "pin_memory": process.device.type == "cuda",
        "persistent_workers": options.workers > 0,
    }
    sampler: DistributedSampler[Any] = DistributedSampler(
        train, process.count, process.rank, seed=options.seed, drop_last=True
    )
    part = Subset(val, range(process.rank, len(val), process.count))
    return (
        DataLoader(train, options.batch, sampler=sampler, drop_last=True, **shared),
        DataLoader(part, options.batch, **shared),
    )


def make_network(options: argparse.Namespace, process: Process, classes: int) -> nn.Module:
    torch.manual_seed(options.seed)
    network: nn.Module = build(options.model, pretrained=options.pretrained, num_classes=classes).model
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


class Trainer:
    """The state of one run, and one epoch of it."""

    def __init__(
        self, options: argparse.Namespace, process: Process, network: nn.Module, loader: DataLoader[Any]
    ) -> None:
        self.options, self.process, self.network, self.loader = options, process, network, loader
        self.ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(options.ema), use_buffers=True)
        self.steps = min(len(loader), options.steps or len(loader))
        rate = options.rate * options.batch * process.count / 256
        self.optimizer = torch.optim.SGD(self._groups(), rate, momentum=0.9, nesterov=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate_at)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=options.smoothing)
        self.epoch, self.best = 0, -1.0
        runnable: Any = network
        if process.count > 1:
            runnable = DistributedDataParallel(network, [process.device] if process.device.type == "cuda" else None)
        self.runnable = torch.compile(runnable) if options.compile else runnable

    def _groups(self) -> list[dict[str, Any]]:
        matrices = [parameter for parameter in self.network.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.network.parameters() if parameter.ndim <= 1]
        return [{"params": matrices, "weight_decay": self.options.decay}, {"params": others, "weight_decay": 0.0}]

    def _rate_at(self, step: int) -> float:
        """Share of the full rate: a linear rise, then half a cosine."""
        warmup, total = self.options.warmup * self.steps, max(self.options.epochs * self.steps, 1)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))

    def train(self, progress: Progress) -> float:
        """Train one epoch; the mean loss over all processes."""
        seed(self.options.seed + 1000 * self.epoch + self.process.rank)  # so that a resumed run is the same run
        self.loader.sampler.set_epoch(self.epoch)  # type: ignore[attr-defined]
        self.network.train()
        task = progress.add_task(f"epoch {self.epoch + 1}", total=self.steps, loss="")
        total = torch.zeros((), device=self.process.device)
        for step, (images, labels) in zip(range(self.steps), self.loader, strict=False):
            loss = self._step(images, labels)
            total += loss
            if step % 10 == 0:  # reading it waits for the GPU
                progress.update(task, loss=f"loss {loss.item():.3f}")
            progress.advance(task)
        progress.remove_task(task)
        mean = self.process.sum(total).item() / (self.steps * self.process.count)
        if not math.isfinite(mean):
            raise SystemExit(f"the loss of epoch {self.epoch + 1} is {mean}; try a lower --rate or more --warmup")
        return mean

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = self.placed(images, labels)
        with torch.autocast(self.process.device.type, torch.bfloat16, enabled=self.options.amp):
            loss = self.criterion(self.runnable(images), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip)
        self.optimizer.step()
        self.schedule.step()
        self.ema.update_parameters(self.network)
        return loss.detach()

    def placed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        device = self.process.device
        images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        return images, labels.to(device, non_blocking=True)

    @torch.inference_mode()
    def validate(self, network: nn.Module, loader: DataLoader[Any]) -> tuple[float, float]:
        """Mean loss and top-1 accuracy over all processes."""
        network.eval()
        counts = torch.zeros(3, device=self.process.device, dtype=torch.float64)
        for batch in loader:
            images, labels = self.placed(*batch)
            with torch.autocast(self.process.device.type, torch.bfloat16, enabled=self.options.amp):
                logits = network(images)
            loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
            counts += torch.stack([loss, (logits.argmax(1) == labels).sum(), torch.ones_like(labels).sum()])
        loss_sum, right, seen = self.process.sum(counts).tolist()
        return loss_sum / seen, right / seen

    def state(self) -> dict[str, Any]:
        parts = {"network": self.network, "ema": self.ema, "optimizer": self.optimizer, "schedule": self.schedule}
        run = {"model": self.options.model, "recipe": self.options.recipe, "epoch": self.epoch, "best": self.best}
        return {**run, **{name: part.state_dict() for name, part in parts.items()}}  # type: ignore[attr-defined]

    def restore(self, state: dict[str, Any]) -> None:
        for name in ("model", "recipe"):
            if state[name] != getattr(self.options, name):
                raise SystemExit(f"last.pt has {name} {state[name]!r}, this command {getattr(self.options, name)!r}")
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.best = state["epoch"], state["best"]


def seed(value: int) -> None:
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)


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
    console = Console(quiet=not process.is_first, soft_wrap=True)
    options.out.mkdir(parents=True, exist_ok=True)
    train, val, classes = open_data(options, process)
    loader, val_loader = make_loaders(options, process, train, val)
    network = make_network(options, process, classes)
    console.print(f"{options.model}: {len(injected(network))} SimAM sites, {classes} classes, {len(train)} images")
    trainer = Trainer(options, process, network, loader)
    last = options.out / "last.pt"
    if options.resume and last.exists():
        trainer.restore(torch.load(last, map_location=process.device, weights_only=True))
        console.print(f"resumed after epoch {trainer.epoch}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=console, transient=True) as progress:
        while trainer.epoch < options.epochs:
            run_epoch(trainer, val_loader, progress, console)
    if options.export and process.is_first:
        from simam_inject.export import export

        example = torch.zeros(1, 3, options.size, options.size, device=process.device)
        report = export(trainer.ema.module, options.export, example_inputs=example)
        console.print(f"{report.path}: {report.live} sites live, {report.difference:.1e} from eager")


def run_epoch(trainer: Trainer, val_loader: DataLoader[Any], progress: Progress, console: Console) -> None:
    options, process = trainer.options, trainer.process
    start = time.perf_counter()
    train_loss = trainer.train(progress)
    seconds = time.perf_counter() - start
    process.share(trainer.network, trainer.ema)
    val_loss, top1 = trainer.validate(trainer.network, val_loader)
    _, ema_top1 = trainer.validate(trainer.ema.module, val_loader)
    trainer.epoch += 1
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
    is_best = ema_top1 > trainer.best
    trainer.best = max(ema_top1, trainer.best)
    if process.is_first:
        write_row(options.out / "log.csv", row)
        write_state(options.out / "last.pt", trainer.state())
        if is_best:
            save(trainer.ema.module, options.out / "best.safetensors")


def main() -> None:
    options = parse_arguments()
    torch.backends.cudnn.benchmark = True
    with joined() as process:
        run(options, process)


if __name__ == "__main__":
    main()
