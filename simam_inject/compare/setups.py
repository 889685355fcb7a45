"""What `simam-inject compare` trains: a classifier on an image folder, or a YOLO by ultralytics' own trainer."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from simam_inject.api import eject
from simam_inject.compare.cells import Report
from simam_inject.compare.training import IMAGENET, Training, fit, make_loaders, open_folder
from simam_inject.errors import CompareError
from simam_inject.zoo import ZooModel, build, load_weights
from simam_inject.zoo.names import holds_yolo
from simam_inject.zoo.yolo import read_yolo

_WARM_BATCHES = 8
_BUILT_IN = {"rate": "--rate", "ema": "--ema", "augment": "--no-augment", "compile": "--compile"}
"""Settings that ultralytics' trainer does not share."""


def set_up(
    model: str, data: str, training: Training, device: str, *, pretrained: bool = False, weights: str | None = None
) -> dict[str, Any]:
    """Arguments of `compare` for a model of the zoo: a classifier, or a YOLO.

    Size 0 in `training` is the usual one: 640 for a YOLO, 224 for any classifier.

    Raises:
        InjectError: The model, the data or the weights are invalid.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CompareError("no CUDA device is available here; use --device cpu")
    built = build(model)
    if built.source == "ultralytics":
        if pretrained:
            raise CompareError("give the checkpoint of a YOLO as MODEL, e.g. yolov8n.pt, instead of --pretrained")
        return _set_up_yolo(model, data, training, device, weights)
    training = replace(training, size=training.size or 224)
    normalization = built.normalization or IMAGENET
    images = open_folder(data, training.size, augment=training.augment, normalization=normalization)
    make = partial(build, model, pretrained=pretrained, num_classes=len(images.classes))

    def make_model() -> nn.Module:
        built = make()
        if weights:
            built = load_weights(built, Path(weights), new_head=True)
        network: nn.Module = built.model
        return eject(network)  # a file of this package has SimAMs, which would be in plain too

    if weights:
        make_model()  # raises an error if they do not fit
    loader, _ = make_loaders(images, training, seed=0)  # raises an error if the images are too few
    batches = list(islice(loader, _WARM_BATCHES)) if pretrained or weights else None
    settings = {"model": model, "data": data, "pretrained": pretrained, "weights": weights}
    settings |= {"normalization": normalization, **asdict(training)}
    shape = (min(training.batch, 8), 3, training.size, training.size)
    example = replace(built, input_shapes=(shape,)).example_inputs
    train = partial(fit, images=images, training=training, device=device)
    given = {"make_model": make_model, "train": train, "example_inputs": example}
    return {**given, "batches": batches, "settings": settings}


def _set_up_yolo(model: str, data: str, training: Training, device: str, weights: str | None) -> dict[str, Any]:
    """A YOLO and the data set of its `data.yaml`; the metric is mAP50-95 (or top-1) of the averaged weights."""
    from ultralytics.data.utils import check_cls_dataset, check_det_dataset

    if other := [option for name, option in _BUILT_IN.items() if getattr(training, name) != getattr(Training(), name)]:
        raise CompareError(f"ultralytics' trainer has its own settings for {', '.join(other)}: leave these out")
    is_trained = weights is not None or model.endswith(".pt")
    built = _build_yolo(model, weights)
    yolo = eject(built.model)  # SimAMs of a checkpoint would be in plain too
    is_classifier = yolo.task == "classify"
    size = training.size or (224 if is_classifier else 640)
    metric = "metrics/accuracy_top1" if is_classifier else "metrics/mAP50-95(B)"
    try:
        classes = (check_cls_dataset if is_classifier else check_det_dataset)(data)["nc"]
    except Exception as error:
        raise CompareError(f"{data} is not a data set that ultralytics can read: {str(error).strip()}") from None
    used = {"epochs": training.epochs, "batch": training.batch, "amp": training.amp}
    quiet = {"plots": False, "save": False, "exist_ok": True, "patience": training.epochs + 1}  # no early end

    def make_model() -> Any:
        made = type(yolo.model)(yolo.model.yaml, ch=3, nc=classes, verbose=False)
        if is_trained:
            made.load(yolo.model)
        return made

    def train(made: nn.Module, seed: int, report: Report) -> float:
        with tempfile.TemporaryDirectory() as folder:
            given = {"model": model, "data": data, "device": device, "imgsz": size, "project": folder, "seed": seed}
            overrides = {**given, **used, **quiet, "workers": training.loaders}
            trainer = yolo.task_map[yolo.task]["trainer"](overrides=overrides)
            trainer.model = made  # a network is trained as it is, where a name would be built anew
            trainer.save_model = trainer.final_eval = lambda: None  # the last epoch counts, not the best
            trainer.add_callback("on_fit_epoch_end", lambda done: report(done.epoch + 1, 100 * done.metrics[metric]))
            if is_trained:
                trainer.add_callback("on_pretrain_routine_end", _estimate_norms)
            trainer.train()
            return 100 * float(trainer.metrics[metric])

    settings = {"model": model, "data": data, "weights": weights, "size": size, "loaders": training.loaders, **used}
    example = built.with_size((3, size, size)).example_inputs
    return {"make_model": make_model, "train": train, "example_inputs": example, "settings": settings}


def _build_yolo(model: str, weights: str | None) -> ZooModel:
    """A YOLO, with the weights of a file for the same network, perhaps with another number of classes."""
    if weights is None:
        return build(model)
    file = Path(weights)
    is_checkpoint = file.suffix == ".pt" and holds_yolo(file)
    classes = read_yolo(file).model.yaml["nc"] if is_checkpoint and not model.endswith(".pt") else None
    return load_weights(build(model, num_classes=classes), file, new_head=True)


def _estimate_norms(trainer: Any) -> None:
    """Compute the batch norm statistics again on ultralytics' own batches, in the network and its average."""
    batches = (trainer.preprocess_batch(batch)["img"] for batch in islice(trainer.train_loader, _WARM_BATCHES))
    update_bn(batches, trainer.model)
    trainer.ema.ema.load_state_dict(trainer.model.state_dict())
