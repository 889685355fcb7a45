"""What `simam-inject compare` trains: a classifier on an image folder, or a YOLO by ultralytics' own trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.optim.swa_utils
from torch import nn

from simam_inject.compare.records import Report, Train
from simam_inject.compare.training import Training, fit, make_loaders, open_folder
from simam_inject.errors import CompareError
from simam_inject.zoo import build, load_weights

_WARM_BATCHES = 8
_QUIET = {"plots": False, "save": False, "exist_ok": True}
"""Settings of ultralytics under which a run leaves nothing behind."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The arguments of `compare` that follow from a model and its data."""

    make_model: Callable[[], nn.Module]
    train: Train
    example_inputs: Any
    settings: dict[str, Any]
    batches: Any = None


def set_up_classifier(
    model: str, data: str, training: Training, device: str, *, pretrained: bool = False, weights: str | None = None
) -> Setup:
    """A network of the zoo on an image folder.

    Raises:
        InjectError: The model, the data or the weights are not fit.
    """
    images = open_folder(data, training.size, augment=training.augment)
    loader, _ = make_loaders(images, training, seed=0)
    built = build(model, pretrained=pretrained, num_classes=len(images.classes))
    state = load_weights(built, Path(weights)).model.state_dict() if weights else None

    def make_model() -> nn.Module:
        network: nn.Module = build(model, pretrained=pretrained, num_classes=len(images.classes)).model
        if state is not None:
            network.load_state_dict(state)
        return network

    def train(network: nn.Module, seed: int, report: Report) -> float:
        return fit(network, images, training, device, seed, report)

    warm = list(islice(loader, _WARM_BATCHES)) if pretrained or weights else None
    settings = {"model": model, "data": str(data), "pretrained": pretrained, "weights": weights, **asdict(training)}
    return Setup(make_model, train, _example(min(training.batch, 8), training.size), settings, warm)


def _example(images: int, size: int) -> torch.Tensor:
    return torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(0))


def set_up_yolo(model: str, data: str, training: Training, device: str, *, weights: str | None = None) -> Setup:
    """A YOLO and the data set of its `data.yaml`; the metric is mAP50-95 (or top-1) of the averaged weights.

    Raises:
        InjectError: The model or the data are not fit.
    """
    yolo = build(weights or model).model
    network, task = yolo.model, yolo.task
    network_class: Any = type(network)
    classes = _count_classes(data, task)
    metric = "metrics/accuracy_top1" if task == "classify" else "metrics/mAP50-95(B)"

    def make_model() -> nn.Module:
        made = network_class(network.yaml, ch=3, nc=classes, verbose=False)
        if weights is not None:
            made.load(network)
        return cast(nn.Module, made)

    def train(made: nn.Module, seed: int, report: Report) -> float:
        with tempfile.TemporaryDirectory() as folder:
            overrides = {"model": model, "data": data, "device": device, "seed": seed, "project": folder, **_QUIET}
            overrides |= {"epochs": training.epochs, "patience": training.epochs + 1}  # no early end
            overrides |= {"batch": training.batch, "imgsz": training.size}
            overrides |= {"amp": training.amp, "workers": training.workers}
            trainer = yolo.task_map[task]["trainer"](overrides=overrides)
            trainer.model = made  # a network is trained as it is, where a name would be built anew
            trainer.save_model = trainer.final_eval = lambda: None  # the last epoch counts, not the best
            trainer.add_callback("on_fit_epoch_end", lambda done: report(done.epoch + 1, 100 * done.metrics[metric]))
            if weights is not None:
                trainer.add_callback("on_pretrain_routine_end", _estimate_norms)
            trainer.train()
            return 100 * float(trainer.metrics[metric])

    used = ("epochs", "batch", "size", "workers", "amp")
    settings = {"model": model, "data": data, "weights": weights, **{name: getattr(training, name) for name in used}}
    return Setup(make_model, train, _example(1, training.size), settings)


def _estimate_norms(trainer: Any) -> None:
    """The warm start of `compare`, on images of ultralytics' own loader, for the network and its average."""
    batches = (trainer.preprocess_batch(batch)["img"] for batch in islice(trainer.train_loader, _WARM_BATCHES))
    torch.optim.swa_utils.update_bn(batches, trainer.model)
    trainer.ema.ema.load_state_dict(trainer.model.state_dict())


def _count_classes(data: str, task: str) -> int:
    from ultralytics.data.utils import check_cls_dataset, check_det_dataset

    try:
        found = check_cls_dataset(data) if task == "classify" else check_det_dataset(data)
    except Exception as error:
        raise CompareError(f"{data} is not a data set that ultralytics can read: {str(error).strip()}") from None
    return int(found["nc"])


def set_up(
    model: str, data: str, training: Training, device: str, *, pretrained: bool = False, weights: str | None = None
) -> Setup:
    """The one or the other, by the model's library."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CompareError("no CUDA device is available here; --device cpu")
    if build(model).source != "ultralytics":
        return set_up_classifier(model, data, training, device, pretrained=pretrained, weights=weights)
    if pretrained:
        raise CompareError("give trained weights of a YOLO as --weights yolov8n.pt")
    return set_up_yolo(model, data, training, device, weights=weights)
