"""Lightning: SimAM by a callback, and checkpoints that contain it.

    trainer = Trainer(callbacks=[SimAMCallback("paper", ramp_steps=2000, calibrate_batches=8)])
    trainer.fit(Net())
    Net.load_from_checkpoint("best.ckpt")        # injected, at the strength that it was saved with

It works for a module that was injected directly, too: once this file is imported, which `inject` and unpickling do if
Lightning is imported, every checkpoint of an injected module contains the record of its sites, and a module that is
loaded from such a checkpoint is injected. A process without this package cannot read the checkpoint, so no site is lost
silently.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import nn

from simam_inject.adapters import Adapter, IntegrationMark, update, wrap
from simam_inject.api import eject, inject, injected
from simam_inject.attention import SimAM
from simam_inject.attention.arguments import check_count, check_number
from simam_inject.editing.attach import attended_in, simams_in
from simam_inject.editing.presence import presences_in
from simam_inject.editing.serialization import checked
from simam_inject.errors import FileError, ModelError, RecipeError, a_type
from simam_inject.persist.record import KEY, Record
from simam_inject.recipe import RecipeLike
from simam_inject.warmup.calibration import calibrate
from simam_inject.warmup.strength import Ramp, named_simams, set_strength

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
"""The library has two names; either may be installed, or both."""
_loaded = [name for name in _PACKAGES if f"{name}.core.module" in sys.modules]

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = importlib.import_module((_loaded or _PACKAGES)[0]).Callback

__all__ = ["SimAMCallback"]


class SimAMCallback(Callback):
    """Injects the module in `setup`, before the optimizers are made. A module that has SimAM already is not changed.

    Of a module without a forward of its own, whose `training_step` calls `self.net(x)`, it injects the one part that
    has parameters.

    Args:
        recipe: whatever `inject` takes.
        example_inputs: for one forward of the module; None uses its `example_input_array`.
        ramp_steps: raise the strength from `start` to 1 over this many optimizer steps of `fit`; it is 1 after the last
            of them. 0 leaves it at 1. The strength depends on `trainer.global_step`, so a resumed training continues
            where it was. Copies that another callback makes, such as those of `WeightAveraging`, get the same strength.
        start: strength of the first step, from 0 to 1.
        calibrate_batches: fit gains to a trained module on so many batches of its one training loader, before the first
            step; see `calibrate`. 0 leaves the gains as they are. A resumed training has those of its checkpoint.
        verify: see `inject`.

    Raises:
        RecipeError: `ramp_steps`, `start` or `calibrate_batches` is out of range.
        ModelError: when a training starts with several loaders and `calibrate_batches`, or a module without a forward
            has several parts with parameters.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SimAMCallback("paper", ramp_steps=2000)], logger=False)
    """

    def __init__(
        self,
        recipe: RecipeLike,
        *,
        example_inputs: Any = None,
        ramp_steps: int = 0,
        start: float = 0.0,
        calibrate_batches: int = 0,
        verify: bool = True,
    ) -> None:
        self.recipe, self.example_inputs, self.verify = recipe, example_inputs, verify
        self.ramp_steps = check_count("ramp_steps", ramp_steps, error=RecipeError)
        self.start = check_number("start", start, RecipeError)
        self.calibrate_batches = check_count("calibrate_batches", calibrate_batches, error=RecipeError)
        self._ramp: Ramp | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Inject."""
        pl_module.configure_model()  # where large models are built; Lightning calls it after `setup`, and repeatedly
        is_injected, is_copy = bool(injected(pl_module)), hasattr(trainer.strategy.launcher, "_start_method")
        if is_copy and stage == "fit" and (not is_injected or self.ramp_steps or self.calibrate_batches):
            warnings.warn(
                "this strategy trains a copy of the module in other processes: afterwards, the module has the weights "
                "of the copy, but not the SimAM, strength and gains of this callback; load the checkpoint instead",
                stacklevel=2,
            )
        if is_injected:
            return
        example = self.example_inputs if self.example_inputs is not None else pl_module.example_input_array
        strength = self.start if self.ramp_steps and stage == "fit" else 1.0
        inject(_network_of(pl_module), self.recipe, example_inputs=example, verify=self.verify, strength=strength)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the gains, also of the copies that other callbacks made in `setup`, and begin the ramp."""
        if self.calibrate_batches and not trainer.global_step:
            loader = trainer.train_dataloader or ()
            if isinstance(loader, (dict, list, tuple)) and loader:
                advice = "call calibrate(module, batches) before fit, without calibrate_batches"
                raise ModelError(f"calibrate_batches takes one loader of training data, not {a_type(loader)}: {advice}")
            if self.ramp_steps:
                set_strength(pl_module, self.start)  # to which the norms are fitted
            calibrate(_network_of(pl_module), islice(loader, self.calibrate_batches))
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        values = [value for callback in callbacks for value in vars(callback).values()]
        modules = [value for value in values if isinstance(value, nn.Module)]
        copies = [one for one in modules if simams_in(one)]
        for copied in copies:
            for (_, part), (_, original) in zip(named_simams(copied), named_simams(pl_module), strict=False):
                part.gain = original.gain
        self._ramp = Ramp(pl_module, *copies, steps=self.ramp_steps, start=self.start) if self.ramp_steps else None

    def on_train_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Set the strength of this step again, which a validation may have changed."""
        self.on_train_batch_end(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Set the strength after the steps so far, in the module and in its copies."""
        if self._ramp is not None and not self._ramp.finished:
            self._ramp.load_state_dict({**self._ramp.state_dict(), "done": trainer.global_step})

    def state_dict(self) -> dict[str, Any]:
        """Not empty, so that Lightning warns where a training is resumed without this callback."""
        return {"ramp_steps": self.ramp_steps, "start": self.start}


def _network_of(module: LightningModule) -> nn.Module:
    """What a step calls: the module, or its one part with parameters where the module has no forward."""
    if "forward" in vars(module) or type(module).forward.__qualname__ != "LightningModule.forward":
        return module
    parts = {name: part for name, part in module.named_children() if any(True for _ in part.parameters())}
    if len(parts) == 1:
        return next(iter(parts.values()))
    found = f"{type(module).__name__} has no forward and {len(parts)} parts with parameters ({', '.join(parts)})"
    raise ModelError(f"{found}: inject and calibrate the network before fit, and leave out calibrate_batches")


def _dump_checkpoint(original: Callable[..., dict[str, Any]], connector: Any, /, *args: Any, **kwargs: Any) -> Any:
    checkpoint = original(connector, *args, **kwargs)
    module = connector.trainer.lightning_module
    there = [entry.attention for entry in attended_in(module)]
    if any(isinstance(part, SimAM) and part.bypassed for part in there):
        warnings.warn("SimAM is bypassed here, and will run in what is loaded from this checkpoint", stacklevel=4)
    peers = [part for part in there if not isinstance(part, SimAM)]  # their weights name them
    if len(peers) < len(there) and peers:
        advice = "inject the module that loads it as this one"
        warnings.warn(f"this checkpoint has no record of SimAM beside {a_type(peers[0])}: {advice}", stacklevel=4)
    if there and not peers:
        records = {path: Record.of(part).model_dump(mode="json") for path, part in _injected_parts(module).items()}
        checkpoint[KEY] = {"records": records, "integration": IntegrationMark(__name__)}
    return checkpoint


def _injected_parts(module: nn.Module) -> dict[str, nn.Module]:
    """By path, what was injected: the module, or parts of it that have all of its sites."""
    paths = [path for path in presences_in(module) if path]
    outer = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    parts = {path: module.get_submodule(path) for path in outer}
    is_all = sum(len(injected(part)) for part in parts.values()) == len(injected(module))
    return parts if is_all and "" not in presences_in(module) else {"": module}


def _restore_model(original: Callable[..., None], connector: Any) -> None:
    original(connector)
    _restore_sites(connector.trainer.lightning_module, connector._loaded_checkpoint)


def _load_state(original: Callable[..., Any], kind: type, checkpoint: Any, /, *args: Any, **kwargs: Any) -> Any:
    loaded = original(kind, checkpoint, *args, **kwargs)
    if isinstance(loaded, nn.Module):  # or a LightningDataModule
        _restore_sites(loaded, checkpoint)
    return loaded


def _restore_sites(module: nn.Module, checkpoint: Any) -> None:
    """Give a module, or the parts of it that were injected, the sites and settings of its checkpoint."""
    found = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(found, dict):
        return
    texts = checked(dict[str, Any], found.get("records"), f"checkpoint[{KEY!r}]")
    records = {path: Record.read(text, f"checkpoint[{KEY!r}]") for path, text in texts.items()}
    modules = dict(module.named_modules(remove_duplicate=False))
    if unknown := records.keys() - modules.keys():
        raise FileError(f"SimAM cannot be restored: {a_type(module)} has no module {min(unknown)}")
    if not injected(module):
        try:
            for path, record in records.items():
                record.attach_to(modules[path])
                update(modules[path])
        except FileError:
            eject(module)
            raise
    elif not any(record.differences(modules[path]) for path, record in records.items()):
        for path, record in records.items():
            record.set_strengths(modules[path])
    else:
        advice = "call eject(module) before loading to get those of the checkpoint"
        warnings.warn(f"SimAM stays at other sites than those of the checkpoint: {advice}", stacklevel=5)


for _package in _loaded or _PACKAGES[:1]:
    _connector = importlib.import_module(f"{_package}.trainer.connectors.checkpoint_connector")
    wrap(importlib.import_module(f"{_package}.core.saving"), "_load_state", _load_state)
    wrap(_connector._CheckpointConnector, "dump_checkpoint", _dump_checkpoint)
    wrap(_connector._CheckpointConnector, "restore_model", _restore_model)
ADAPTER = Adapter(__name__)
