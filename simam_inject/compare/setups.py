"""What `simam-inject compare` trains: a classifier on an image folder, or a YOLO by ultralytics' own trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from simam_inject.compare.cells import Experiment, Report, Variant
from simam_inject.compare.training import IMAGENET, Training, fit, make_loaders, open_folder
from simam_inject.compare.variants import check_recipes
from simam_inject.errors import CompareError
from simam_inject.zoo import build, load_weights

_WARM_BATCHES = 8


def set_up(
    model: str,
    data: str,
    training: Training,
    device: str,
    variants: Sequence[Variant] = (),
    *,
    pretrained: bool = False,
    weights: str | None = None,
) -> Experiment:
    """The experiment for a model of the zoo: a classifier, or a YOLO.

    Raises:
        InjectError: The model, the data, the weights or the recipe of a variant are invalid.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CompareError("no CUDA device is available here; use --device cpu")
    built = build(model)
    if built.source == "ultralytics":
        if pretrained:
            raise CompareError("give trained weights of a YOLO as --weights yolov8n.pt")
        return _set_up_yolo(model, data, training, device, variants, weights)
    normalization = built.normalization or IMAGENET
    images = open_folder(data, training.size, augment=training.augment, normalization=normalization)

    make = partial(build, model, pretrained=pretrained, num_classes=len(images.classes))
    # Of a file of this package only the weights: its SimAMs would be in plain too.
    state = load_weights(make(), Path(weights)).model.state_dict() if weights else None

    def make_model() -> nn.Module:
        network: nn.Module = make().model
        if state is not None:
            network.load_state_dict(state)
        return network

    def train(network: nn.Module, seed: int, report: Report) -> float:
        return fit(network, images, training, device, seed, report)

    example = _make_example(min(training.batch, 8), training.size)
    check_recipes(make_model, variants, example)
    loader, _ = make_loaders(images, training, seed=0)  # raises an error if the images are too few
    batches = list(islice(loader, _WARM_BATCHES)) if pretrained or weights else None
    settings = {"model": model, "data": data, "pretrained": pretrained, "weights": weights}
    settings |= {"normalization": normalization, **asdict(training)}
    return Experiment(make_model, train, example, batches, settings)


def _set_up_yolo(
    model: str, data: str, training: Training, device: str, variants: Sequence[Variant], weights: str | None
) -> Experiment:
    """A YOLO and the data set of its `data.yaml`; the metric is mAP50-95 (or top-1) of the averaged weights."""
    yolo = build(weights or model).model
    classes = _count_classes(data, yolo.task)
    metric = "metrics/accuracy_top1" if yolo.task == "classify" else "metrics/mAP50-95(B)"
    used = {"epochs": training.epochs, "batch": training.batch, "amp": training.amp, "workers": training.workers}
    quiet = {"plots": False, "save": False, "exist_ok": True, "patience": training.epochs + 1}  # no early end

    def make_model() -> Any:
        made = type(yolo.model)(yolo.model.yaml, ch=3, nc=classes, verbose=False)
        if weights is not None:
            made.load(yolo.model)
        return made

    def train(made: nn.Module, seed: int, report: Report) -> float:
        with tempfile.TemporaryDirectory() as folder:
            given = {"model": model, "data": data, "device": device, "imgsz": training.size, "project": folder}
            trainer = yolo.task_map[yolo.task]["trainer"](overrides={**given, **used, **quiet, "seed": seed})
            trainer.model = made  # a network is trained as it is, where a name would be built anew
            trainer.save_model = trainer.final_eval = lambda: None  # the last epoch counts, not the best
            trainer.add_callback("on_fit_epoch_end", lambda done: report(done.epoch + 1, 100 * done.metrics[metric]))
            if weights is not None:
                trainer.add_callback("on_pretrain_routine_end", _estimate_norms)
            trainer.train()
            return 100 * float(trainer.metrics[metric])

    example = _make_example(1, training.size)
    check_recipes(make_model, variants, example)
    settings = {"model": model, "data": data, "weights": weights, "size": training.size, **used}
    return Experiment(make_model, train, example, settings=settings)


def _make_example(images: int, size: int) -> torch.Tensor:
    return torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(0))


def _estimate_norms(trainer: Any) -> None:
    """Compute the batch norm statistics again on ultralytics' own batches, in the network and its average."""
    batches = (trainer.preprocess_batch(batch)["img"] for batch in islice(trainer.train_loader, _WARM_BATCHES))
    update_bn(batches, trainer.model)
    trainer.ema.ema.load_state_dict(trainer.model.state_dict())


def _count_classes(data: str, task: str) -> int:
    from ultralytics.data.utils import check_cls_dataset, check_det_dataset

    try:
        found = check_cls_dataset(data) if task == "classify" else check_det_dataset(data)
    except Exception as error:
        raise CompareError(f"{data} is not a data set that ultralytics can read: {str(error).strip()}") from None
    return int(found["nc"])
