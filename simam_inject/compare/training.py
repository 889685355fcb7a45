"""A trainer of image classifiers: the one of `simam-inject compare` and of examples/train_classifier.py.

SGD with Nesterov's momentum, a linear rise and half a cosine, label smoothing, an average of the weights, bfloat16,
channels last, torch.compile. Everything that is random follows from the seed and the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

from simam_inject.compare.cells import Report
from simam_inject.compare.running import seed_everything
from simam_inject.errors import CompareError
from simam_inject.pictures import open_picture

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel of images in [0, 1]."""
IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SPLIT = 5
"""Of a folder without train/ and val/, every fifth image of a class is for validation."""


@dataclass(frozen=True, slots=True)
class Training:
    """How to train."""

    epochs: int = 90
    batch: int = 64
    """Images per process."""
    size: int = 224
    """Side of the images; 0 for what `setups.set_up` finds usual for the model."""
    rate: float = 0.1
    """Learning rate for a batch of 256 images; scaled to the real number."""
    warmup: float = 5
    """Epochs of rising rate."""
    decay: float = 1e-4
    """Weight decay; norms and biases have none."""
    smoothing: float = 0.1
    ema: float = 0.0
    """Decay of the average of the weights, per step; 0 for none: the last weights count."""
    clip: float = 5.0
    """Largest norm of the gradient."""
    steps: int | None = None
    """At most so many steps an epoch."""
    loaders: int = 0
    """Loading processes per training process."""
    augment: bool = True
    """Random crops and mirrors; without, images are only resized, and stay in memory."""
    amp: bool = False
    compile: bool = False


@dataclass(frozen=True, slots=True)
class Images:
    """Training and validation images, two data sets that have a length, with their classes."""

    train: Any
    val: Any
    classes: tuple[str, ...]


def make_transforms(
    size: int, *, augment: bool, normalization: Normalization = IMAGENET
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Those of training and of validation images."""
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*normalization)]
    if not augment:
        whole = v2.Compose([v2.Resize((size, size), antialias=True), *finish])
        return whole, whole
    varied = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), *finish])
    return varied, v2.Compose([v2.Resize(size * 8 // 7, antialias=True), v2.CenterCrop(size), *finish])


def open_folder(
    folder: str | Path, size: int, *, augment: bool = True, normalization: Normalization = IMAGENET
) -> Images:
    """Images of `train/CLASS/` and `val/CLASS/`, or of `CLASS/` alone, which is split class by class.

    Raises:
        CompareError: The folder does not exist, no image, one class only, or train/ and val/ differ in their classes.
    """
    parts = [Path(folder) / "train", Path(folder) / "val"]
    if Path(folder).is_dir() and not any(part.is_dir() for part in parts):
        parts = [Path(folder)] * 2
    for part in parts:
        if not part.is_dir():
            raise CompareError(f"no such folder: {part}; give a folder with train/ and val/, or one of classes")
    try:
        train, val = map(
            partial(datasets.ImageFolder, loader=open_picture),
            parts,
            make_transforms(size, augment=augment, normalization=normalization),
        )
    except FileNotFoundError as error:
        raise CompareError(f"{folder} holds no images: {str(error).splitlines()[0]}") from None
    classes = tuple(train.classes)
    if train.classes != val.classes:
        raise CompareError(f"{folder}: train/ and val/ have different classes")
    if len(classes) < 2:
        raise CompareError(f"{folder} has only one class, {classes[0]}; a classifier needs two")
    if parts[0] == parts[1]:
        labels = val.targets  # in ascending order
        first = {label: at for at, label in reversed(list(enumerate(labels)))}
        chosen = [at for at, label in enumerate(labels) if (at - first[label]) % _SPLIT == _SPLIT - 1]
        if not chosen:
            raise CompareError(f"{folder}: every class has fewer than {_SPLIT} images, of which one is for validation")
        train, val = Subset(train, sorted({*range(len(train))}.difference(chosen))), Subset(val, chosen)
    return Images(train, val, classes) if augment else Images(_load(train), _load(val), classes)


def _load(part: Any) -> TensorDataset:
    """The images in memory: without augmentation, they are the same in every epoch."""
    pixels, labels = zip(*part, strict=True)
    return TensorDataset(torch.stack(pixels), torch.tensor(labels))


def make_loaders(
    images: Images, training: Training, seed: int, *, rank: int = 0, processes: int = 1
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Each process reads its own part of both; of the validation set every image exactly once."""
    step = training.batch * processes
    if len(images.train) < step:
        raise CompareError(
            f"{len(images.train)} training images are fewer than one batch of {step}; use a smaller --batch"
        )
    order = 1000 * seed  # the sampler adds the epoch: epoch 1 of seed 0 is not epoch 0 of seed 1
    sampler: DistributedSampler[Any] = DistributedSampler(images.train, processes, rank, seed=order, drop_last=True)
    part = Subset(images.val, range(rank, len(images.val), processes))
    # Workers are started anew in each epoch, with its seed: those that stay would go on with their random numbers.
    load: Any = partial(DataLoader, num_workers=training.loaders, pin_memory=torch.cuda.is_available())
    return load(images.train, training.batch, sampler=sampler, drop_last=True), load(part, training.batch)


class Trainer:
    """The state of one run, and one epoch of it.

    Args:
        network: Trained in place; on the device already.
        loader: Training images, from `make_loaders`.
        seed: Of everything that is random but the order of the images.
        wrapped: What runs instead of the network, such as its `DistributedDataParallel`.
        processes: Number of processes that train together.
    """

    def __init__(
        self,
        network: nn.Module,
        loader: DataLoader[Any],
        training: Training,
        device: torch.device,
        seed: int = 0,
        *,
        wrapped: nn.Module | None = None,
        processes: int = 1,
    ) -> None:
        self.network, self.loader, self.training, self.device, self.seed = network, loader, training, device, seed
        self.epoch = 0
        self.ema: AveragedModel | None = None
        self.result = network
        """The network that counts: the average where there is one."""
        if training.ema:
            average: Any = get_ema_multi_avg_fn(training.ema)  # type: ignore[no-untyped-call]
            self.ema = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
            self.result = self.ema.module
        self.steps = min(len(loader), training.steps or len(loader))
        groups, rate = param_groups_weight_decay(network, training.decay), training.rate * training.batch * processes
        self.optimizer = torch.optim.SGD(groups, rate / 256, momentum=0.9, nesterov=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate_at)
        runnable: Any = network if wrapped is None else wrapped
        self.runnable = torch.compile(runnable) if training.compile else runnable

    def _rate_at(self, step: int) -> float:
        """Share of the full rate: a linear rise, then half a cosine."""
        warmup, total = self.training.warmup * self.steps, max(self.training.epochs * self.steps, 1)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))

    def train(self, on_step: Callable[[int, Tensor], None] = lambda _step, _loss: None) -> Tensor:
        """Train one epoch; the mean loss, which may be NaN."""
        seed_everything(self.seed + 1000 * self.epoch)  # by epoch, so that a resumed run is the same run
        self.loader.sampler.set_epoch(self.epoch)  # type: ignore[attr-defined]
        self.network.train()
        total = torch.zeros((), device=self.device)
        for step, (images, labels) in zip(range(self.steps), self.loader, strict=False):
            loss = self._step(images, labels)
            total += loss
            on_step(step, loss)
        self.epoch += 1
        return total / self.steps

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = self._to_device(images, labels)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.amp):
            logits = self.runnable(images)
            loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.training.smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.training.clip)
        self.optimizer.step()
        self.schedule.step()
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        return loss.detach()

    def _to_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return images, labels.to(self.device, non_blocking=True)

    @torch.inference_mode()
    def validate(self, network: nn.Module, loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
        """Loss summed over the images of this process, and which of them were right."""
        network.eval()
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        right = []
        for batch in loader:
            images, labels = self._to_device(*batch)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.amp):
                logits = network(images)
            total += nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
            right.append(logits.argmax(1) == labels)
        return total, torch.cat(right)


def fit(network: nn.Module, seed: int, report: Report, *, images: Images, training: Training, device: str) -> float:
    """Train a network in place, in this process.

    `seed` sets the data order and everything else that is random. `report` receives the validation accuracy after each
    epoch, and which images are right after the last.

    Returns:
        Percent of right answers at the end, of the last weights or their average; NaN if the loss is not finite.
    """
    loader, val_loader = make_loaders(images, training, seed)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(network, loader, training, torch.device(device), seed)
    while trainer.epoch < training.epochs:
        if not math.isfinite(trainer.train()):
            return math.nan
        _, answers = trainer.validate(trainer.result, val_loader)
        report(trainer.epoch, 100 * answers.double().mean().item())
    report.samples(answers.tolist())
    return report.curve[-1][1]
