"""A ramp of the strength during a YOLO training, of the network and its EMA, by callbacks of the trainer."""

from __future__ import annotations

from typing import Any

from torch import nn
from ultralytics.engine.model import Model

from simam_inject.attention import SimAM
from simam_inject.errors import FileError, ModelError, a_type
from simam_inject.integrations.ultralytics.record import RAMP, networks_in, recorded, write
from simam_inject.warmup.strength import Ramp, ramped

_ATTRIBUTE = "_simam_ramp"
"""Of a YOLO object: the ramp of its next training."""


def ramp(model: Any, epochs: float = 3.0, start: float = 0.0) -> None:
    """Raise the strength of every SimAM from `start` to 1 during the first epochs of the next `model.train(...)`.

    The strength depends on the epoch and the batch within it, so it is right when a training is resumed or an epoch
    repeated. Each checkpoint contains the strength at the end of its epoch, which is 1 after `epochs` of them, and
    `last.pt` the ramp, for `resume=True`.

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
    planned = EpochRamp(epochs, start)
    if not isinstance(model, Model):
        raise ModelError(f"ramp expects the YOLO object whose train() is called next, found {a_type(model)}")
    Ramp(model, steps=1, start=planned.start)  # sets the first strength, and warns without gains
    model.__dict__[_ATTRIBUTE] = planned


class EpochRamp:
    """Callbacks of a trainer, by the names of its events. A class, so that a DDP worker can unpickle them.

    Raises:
        ModelError: a number is out of range.
    """

    def __init__(self, epochs: float, start: float) -> None:
        if not epochs > 0 or not 0.0 <= start <= 1.0:
            raise ModelError(
                f"ramp expects epochs above 0 and a start from 0 to 1; found epochs={epochs!r:.40}, start={start!r:.40}"
            )
        self.epochs, self.start, self.batch = float(epochs), float(start), 0

    def on_train_epoch_start(self, _: Any) -> None:
        """Count from the epoch's start, also where an epoch is done again."""
        self.batch = 0

    def on_train_batch_start(self, trainer: Any) -> None:
        """Set the strength of this batch."""
        self._set_strength(trainer)
        self.batch += 1

    def _set_strength(self, trainer: Any) -> None:
        """Set the strength after the batches so far, in whatever is trained and saved."""
        epoch = trainer.epoch + self.batch / len(trainer.train_loader)
        for model in trained_models(trainer).values():
            for module in model.modules():
                if isinstance(module, SimAM):
                    module.strength = ramped(self.start, epoch / self.epochs)

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Set the strength after all batches, and write it and the ramp into the yaml of what is saved then."""
        self._set_strength(trainer)
        for model in trained_models(trainer).values():
            for network in filter(recorded, networks_in(model)):
                write(network)
                network.yaml[RAMP] = {"epochs": self.epochs, "start": self.start}


def trained_models(trainer: Any) -> dict[str, nn.Module]:
    """By name, what a trainer trains, and what it validates and saves."""
    models = {"model": trainer.model, "EMA": getattr(getattr(trainer, "ema", None), "ema", None)}
    return {name: model for name, model in models.items() if isinstance(model, nn.Module)}


def has_ramp(model: Any) -> bool:
    """Whether `ramp` was called for the next training, which sets the strengths."""
    return _ATTRIBUTE in vars(model)


def take_ramp(model: Any, *, resumed: bool) -> EpochRamp | None:
    """The ramp of a training that starts: the one that was set on the YOLO object, else the recorded one if it resumes.

    Both are taken away.

    Raises:
        FileError: what the network's yaml records is not a ramp.
    """
    given, found = model.__dict__.pop(_ATTRIBUTE, None), model.model.yaml.pop(RAMP, None)
    try:
        recorded_ramp = None if found is None else EpochRamp(**found)
    except (TypeError, ValueError, ModelError) as error:
        raise FileError(f"model.yaml[{RAMP!r}] is not a ramp: {found!r:.120}") from error
    return given or (recorded_ramp if resumed else None)
