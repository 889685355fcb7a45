"""A ramp of the strength, of model and EMA, that rides the callbacks of a trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from simam_inject.attention import SimAM
from simam_inject.errors import ModelError
from simam_inject.integrations.ultralytics.record import networks_in, recorded, write, write_ramp

RAMP = "_simam_ramp"
"""Attribute of a YOLO object: the ramp of its next training."""


def ramp(model: Any, epochs: float = 3.0, start: float = 0.0) -> None:
    """Raise the strength of every SimAM from `start` to 1 during the first epochs of the next `model.train(...)`.

    The strength follows the epoch and the batch within it, so a training that is resumed or redoes an epoch goes on
    where it should; `last.pt` carries the ramp for `resume=True`. A checkpoint carries the strength of its epoch.

    Args:
        model: an injected `YOLO`, `RTDETR`, ... object.
        epochs: length of the ramp in epochs, above 0.
        start: strength of the first batch, from 0 to 1.

    Raises:
        ModelError: the object is not injected, or a number is out of range.

    Example:
        >>> model = inject(YOLO("yolov8n.pt"), "yolo-neck", strength=0.0)  # doctest: +SKIP
        >>> ramp(model, epochs=3)  # doctest: +SKIP
        >>> model.train(data="coco8.yaml", epochs=30)  # doctest: +SKIP
    """
    if not epochs > 0 or not 0.0 <= start <= 1.0:
        raise ModelError(
            f"ramp expects epochs above 0 and a start from 0 to 1; found epochs={epochs!r}, start={start!r}"
        )
    network = getattr(model, "model", None)
    if not isinstance(network, nn.Module) or not hasattr(model, "callbacks"):
        raise ModelError(f"ramp expects the YOLO object whose train() is called next, found a {type(model).__name__}")
    attention = list(_attention_in(network))
    if not attention:
        raise ModelError("there is no SimAM in this model; inject(model, recipe) adds it")
    if all(module.gain == 1.0 for module in attention):
        warnings.warn(
            "ramp without gains: the running statistics of norm layers will lag behind the rising strength; "
            "call calibrate(model, ...) first",
            stacklevel=2,
        )
    for module in attention:
        module.strength = float(start)
    model.__dict__[RAMP] = StrengthRamp(float(epochs), float(start))


class StrengthRamp:
    """The callbacks. A class, so that a DDP worker can unpickle them."""

    def __init__(self, epochs: float, start: float) -> None:
        self.epochs = epochs
        self.start = start
        self.batch = 0

    def callbacks(self) -> list[tuple[str, Callable[[Any], None]]]:
        """Events of a trainer with what to do."""
        return [
            ("on_pretrain_routine_end", self.begin),
            ("on_train_epoch_start", self.begin_epoch),
            ("on_train_batch_start", self.begin_batch),
            ("on_train_epoch_end", self.record),
        ]

    def begin(self, trainer: Any) -> None:
        """Start at the first epoch's strength, for whatever looks at the network before the first batch."""
        self._set(trainer, float(trainer.start_epoch))

    def begin_epoch(self, _: Any) -> None:
        """Count from the epoch's start, also where an epoch is done again."""
        self.batch = 0

    def begin_batch(self, trainer: Any) -> None:
        """Set the strength of this batch."""
        self._set(trainer, trainer.epoch + self.batch / len(trainer.train_loader))
        self.batch += 1

    def record(self, trainer: Any) -> None:
        """Write strength and ramp into the yaml of what is saved after the epoch."""
        for network in _networks(trainer):
            for part in networks_in(network):
                if recorded(part):
                    write(part)
                    write_ramp(part, self.epochs, self.start)

    def _set(self, trainer: Any, epoch: float) -> None:
        for network in _networks(trainer):
            for module in _attention_in(network):
                module.strength = self._strength(epoch)

    def _strength(self, epoch: float) -> float:
        return self.start + (1.0 - self.start) * min(1.0, epoch / self.epochs)


def _networks(trainer: Any) -> Iterator[nn.Module]:
    yield trainer.model
    ema = getattr(getattr(trainer, "ema", None), "ema", None)
    if ema is not None:
        yield ema


def _attention_in(network: nn.Module) -> Iterator[SimAM]:
    yield from (module for module in network.modules() if isinstance(module, SimAM))
