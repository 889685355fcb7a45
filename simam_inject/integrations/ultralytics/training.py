"""Stock calls: `Model.train` builds an injected network, and `Model.predict` runs the network as it is now.

`ramp` raises the strength during a training, of the network and its EMA.
"""

from __future__ import annotations

import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.engine import trainer as engine_trainer
from ultralytics.engine.model import Model
from ultralytics.models.yolo import world, yoloe
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER, RANK, dist

from simam_inject.adapters import wrap
from simam_inject.attention import SimAM
from simam_inject.attention.arguments import check_number
from simam_inject.editing.attach import attended_in
from simam_inject.errors import FileError, ModelError, VerificationError, a_type
from simam_inject.integrations.ultralytics.record import (
    KEY,
    RAMP,
    check_applied,
    lost_sites,
    names_of,
    network_in,
    recorded,
    write,
)
from simam_inject.persist.record import Record
from simam_inject.verification.checks import tensor_marks
from simam_inject.warmup.strength import Ramp, ramped

_STATE = "_simam_state"
"""Of a YOLO object: what `_state_of` found when `predict` last copied its network."""
_SETTINGS = ("e_lambda", "channel_dim", "strength", "gain", "bypassed", "_bypasses")


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
    model.__dict__[RAMP] = planned


class EpochRamp:
    """Callbacks of a trainer, by the names of its events. A class, so that a DDP worker can unpickle them."""

    def __init__(self, epochs: float, start: float) -> None:
        self.epochs = check_number("epochs", epochs, ModelError)
        self.start, self.batch = check_number("start", start, ModelError), 0

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
            for module in network_in(model).modules():
                if isinstance(module, SimAM):
                    module.strength = ramped(self.start, epoch / self.epochs)

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Set the strength after all batches, and write it and the ramp into the yaml of what is saved then."""
        self._set_strength(trainer)
        for model in trained_models(trainer).values():
            write(model)
            network_in(model).yaml[RAMP] = {"epochs": self.epochs, "start": self.start}  # the one of the whole, too


def trained_models(trainer: Any) -> dict[str, nn.Module]:
    """By name, what a trainer trains, and what it validates and saves."""
    models = {"model": trainer.model, "EMA": getattr(getattr(trainer, "ema", None), "ema", None)}
    return {name: model for name, model in models.items() if isinstance(model, nn.Module)}


class Tripwire:
    """Callback that stops a training whose networks lack a site. A class, so that a DDP worker can unpickle it.

    It is called at the first event at which both the trainer's model and its EMA exist, the last one before a batch.
    """

    def __init__(self, record: Record) -> None:
        self.record = record

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        """Check the trainer's model, and the EMA, which alone is validated and saved; say that SimAM is live."""
        for name, model in trained_models(trainer).items():
            if lost := lost_sites(network_in(model), self.record):
                advice = "get_model of a trainer of your own has to build the network from its cfg"
                raise VerificationError(f"SimAM lost: the trainer's {name} {lost}; {advice}")
        strengths = sorted({entry.insertion.strength for entry in attended_in(network_in(trainer.model))})
        if RANK in (-1, 0) and strengths:
            shown = " to ".join(f"{strength:g}" for strength in dict.fromkeys((strengths[0], strengths[-1])))
            LOGGER.info(f"SimAM: {len(self.record.sites)} sites live, strength {shown}, recipe {names_of(self.record)}")


def _check_trainable(model: Any, *, resumed: bool) -> None:
    """Refuse a training whose network would not have the SimAM of this model."""
    network = network_in(model.model)
    before = recorded(network)
    check_applied(network)
    attentions, file = [entry.attention for entry in attended_in(network)], vars(model).get("cfg")
    if resumed and model.ckpt_path and RAMP not in vars(model):
        saved = tasks.torch_safe_load(model.ckpt_path)[0]
        there = attended_in(network_in(saved.get("ema") or saved["model"]))
        if [entry.insertion for entry in there] != [entry.insertion for entry in attended_in(network)]:
            advice = "save the model and train that file, or resume without the change"
            raise ModelError(f"SimAM in this model is not as in {model.ckpt_path}, which would be resumed: {advice}")
    is_rebuilt = file and not (attentions or before or model.ckpt) and rebuilds_from_name()
    if is_rebuilt and tasks.yaml_model_load(file).get(KEY) is not None:
        raise ModelError(f"the trainer would build {file} anew, with SimAM: remove {KEY!r} from it")
    if any(isinstance(attention, SimAM) and attention.bypassed for attention in attentions):
        raise ModelError("a SimAM of this model is bypassed, and the trainer would build it anew: end the bypass first")
    if before is not None and (lost := lost_sites(network, before)):
        raise VerificationError(f"SimAM lost: the network {lost}; call inject again, or eject to train without SimAM")


def _train(original: Callable[..., Any], model: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Train an injected network, after the checks of `_check_trainable`."""
    if not isinstance(model.model, nn.Module):
        return original(model, *args, **kwargs)
    resumed = bool(kwargs.get("resume", model.overrides.get("resume")))
    _check_trainable(model, resumed=resumed)
    network = network_in(model.model)
    if not (recorded(network) or any(attended_in(network))):
        return original(model, *args, **kwargs)
    tripwire, given = Tripwire(write(model.model)), vars(model).pop(RAMP, None)
    parts = [tripwire, given or _recorded_ramp(network, resumed=resumed)]
    if parts[1] is None and {entry.insertion.strength for entry in attended_in(network)} == {0.0}:
        advice = "call ramp(model) or set_strength(model, 1.0) before, unless a callback raises it"
        warnings.warn(f"every SimAM has strength 0 and this training has no ramp: {advice}", stacklevel=3)
    before, switch = model.callbacks, {"model": model.model}
    ours = {event: [getattr(part, event) for part in parts if hasattr(part, event)] for event in before}
    model.callbacks = defaultdict(list, {event: [*ours[event], *calls] for event, calls in before.items()})
    if not model.ckpt and rebuilds_from_name():
        # With both of ultralytics' own switches it builds from `model.yaml`, with fresh weights. Either alone is wrong:
        # the file name has no record; the weights of the class count in memory would be moved to that of the data set,
        # and its initialisation would differ from an uninjected run.
        model.ckpt = switch
        if not isinstance(kwargs.get("pretrained"), (str, Path)):
            kwargs["pretrained"] = False
    try:
        result = original(model, *args, **kwargs)
    except BaseException:
        if given is not None and any(entry.insertion.strength < 1 for entry in attended_in(network_in(model.model))):
            vars(model)[RAMP] = given  # for the next training: this one failed or was interrupted
        raise
    finally:
        model.callbacks = before
        if model.ckpt is switch:  # stopped before the end, which loads best.pt
            model.ckpt = {}
    least = min((entry.insertion.strength for entry in attended_in(network_in(model.model))), default=1.0)
    if parts[1] is not None and least < 1:
        warnings.warn(
            f"SimAM has strength {least:g} after this training, which ended, or has its best epoch, within the ramp: "
            f"call ramp(model, ..., start={least:g}) or set_strength(model, 1.0) before another training",
            stacklevel=3,
        )
    return result


def _recorded_ramp(network: Any, *, resumed: bool) -> EpochRamp | None:
    """The ramp in the yaml of a network, which a resumed training goes on with; any other one forgets it."""
    found = network.yaml.get(RAMP) if resumed else network.yaml.pop(RAMP, None)
    try:
        ramp = None if found is None else EpochRamp(**found)
    except (TypeError, ValueError, ModelError) as error:
        raise FileError(f"model.yaml[{RAMP!r}] is not a ramp: {found!r:.120}") from error
    return ramp if resumed else None


def rebuilds_from_name() -> bool:
    """Does `Model.train` build a network without checkpoint from its file name? 8.4.0 uses `model.yaml`."""
    return "pretrained" in inspect.unwrap(Model.train).__code__.co_varnames


def _get_model(original: Callable[..., Any], trainer: Any, cfg: Any = None, /, *args: Any, **kwargs: Any) -> Any:
    """Build the file that a yaml names, which is all that these trainers do with it, with the record of the yaml."""
    cfg = kwargs.pop("cfg", cfg)
    if isinstance(cfg, Mapping) and KEY in cfg:
        cfg = {**cfg, "yaml_file": {**tasks.yaml_model_load(cfg["yaml_file"]), KEY: cfg[KEY]}}
    return original(trainer, cfg, *args, **kwargs)


def _predict(original: Callable[..., Any], model: Any, /, *args: Any, **kwargs: Any) -> Any:
    before = vars(model).get(_STATE)
    if before != _state_of(model.model):  # the predictor has a fused copy of the network as it was
        model.predictor = None
    try:
        return original(model, *args, **kwargs)
    finally:  # up to 8.4.120 `predict` fuses the network itself
        if before != (now := _state_of(model.model)):
            vars(model)[_STATE] = now


def _state_of(network: Any) -> object:
    """What `predict` must not run an older copy of: the attention in a network, its settings, and the weights."""
    parts: list[Any] = [entry.attention for entry in attended_in(network)] if isinstance(network, nn.Module) else []
    if not parts:
        return None
    settings = [[getattr(part, name, None) for name in _SETTINGS] for part in parts]
    return id(network), settings, tensor_marks(network)


def _launch(original: Callable[..., Any], trainer: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Up to 8.4.120, refuse a multi-GPU training: its workers would build a network without SimAM from a file name."""
    if recorded(trainer.model) is not None and not hands_network_to_workers():
        raise ModelError("this release of ultralytics trains without SimAM on several GPUs: upgrade it, or use one GPU")
    return original(trainer, *args, **kwargs)


def hands_network_to_workers() -> bool:
    """Do the workers of a multi-GPU training get the trainer's network itself?"""
    return "cloudpickle" in dist.generate_ddp_file.__code__.co_varnames


wrap(Model, "train", _train)
wrap(Model, "predict", _predict)
wrap(engine_trainer, "generate_ddp_command", _launch)
for _kind in (*vars(world).values(), *vars(yoloe).values()):
    if isinstance(_kind, type) and "get_model" in vars(_kind):
        wrap(_kind, "get_model", _get_model)
