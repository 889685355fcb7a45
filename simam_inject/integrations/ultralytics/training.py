"""Training with stock calls: what a `YOLO` object is told, so that its trainer's network is injected."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.engine.model import Model
from ultralytics.nn import tasks
from ultralytics.utils import dist

from simam_inject.errors import ModelError, VerificationError
from simam_inject.integrations.ultralytics.presence import missing_sites
from simam_inject.integrations.ultralytics.record import Record, has_record, read
from simam_inject.planning.records import Insertion

_EVENT = "on_pretrain_routine_end"  # the first with both the trainer's model and its EMA, the last before a batch
_SWITCHED = "_simam_switched"


@dataclass(frozen=True, slots=True)
class Tripwire:
    """Callback that stops a training whose networks lack a site. A class, so that a DDP worker can unpickle it."""

    sites: tuple[Insertion, ...]

    def __call__(self, trainer: Any) -> None:
        """Check the trainer's model, and the EMA, which alone is validated and saved.

        Raises:
            VerificationError: a site is missing.
        """
        ema = getattr(getattr(trainer, "ema", None), "ema", None)
        for name, model in (("model", trainer.model), ("EMA", ema)):
            if not isinstance(model, nn.Module):
                continue
            missing = min((missing_sites(network, self.sites) for network in _networks(model)), key=len)
            if missing:
                raise VerificationError(
                    f"SimAM lost: the trainer's {name} lacks {len(missing)} of {len(self.sites)} sites, first "
                    f"{missing[0].path}. Save the injected model, model.save('x.pt'), and train YOLO('x.pt')."
                )


def _networks(model: nn.Module) -> Iterator[nn.Module]:
    """Every network that may be the injected one: it may be wrapped (DDP, compile) or a student beside its teacher."""
    found = [part for part in model.modules() if isinstance(getattr(part, "yaml", None), Mapping)]
    yield from found or [model]


def keep_through_training(model: Any, record: Record) -> None:
    """Make `model.train()` train an injected network or raise."""
    _unhook(model)
    model.callbacks[_EVENT].append(Tripwire(record.sites))
    if not model.ckpt and _rebuilds_from_name():
        # ultralytics' own switches (they are what `load` and `reset_weights` set): build from `model.yaml`, with fresh
        # weights. Either alone is wrong: the file name has no record; the weights of the class count in memory would
        # be moved to that of the data set, and its initialisation would differ from an uninjected run.
        model.ckpt = {"model": model.model}
        model.overrides["pretrained"] = False
        model.__dict__[_SWITCHED] = True


def train_as_stock(model: Any) -> None:
    """Undo `keep_through_training`."""
    _unhook(model)
    if model.__dict__.pop(_SWITCHED, False) and set(model.ckpt or ()) == {"model"}:
        model.ckpt = {}
        if model.overrides.get("pretrained") is False:
            del model.overrides["pretrained"]


def hands_network_to_workers() -> bool:
    """Do the workers of a multi-GPU training get the network itself? Up to 8.4.120 they load a file by its name."""
    return "cloudpickle" in dist.generate_ddp_file.__code__.co_varnames


def check_launch(trainer: Any) -> None:
    """Refuse to start workers from a file that lacks the sites of the trainer's network.

    Raises:
        ModelError: they would train another network than the one in memory.
    """
    record = read(trainer.model) if isinstance(trainer.model, nn.Module) and has_record(trainer.model) else None
    file = str(trainer.args.model)
    if not isinstance(record, Record):
        return
    if file.endswith(".pt") and Path(file).is_file():
        checkpoint, _ = tasks.torch_safe_load(file)
        stored = checkpoint.get("ema") or checkpoint.get("model")
        if isinstance(stored, nn.Module) and not missing_sites(stored, record.sites):
            return
    raise ModelError(
        f"the workers of a multi-GPU training start from {file} in this release of ultralytics, and it lacks SimAM. "
        "Save the injected model first: model.save('x.pt'); YOLO('x.pt').train(device=[0, 1], ...)"
    )


def _unhook(model: Any) -> None:
    model.callbacks[_EVENT] = [call for call in model.callbacks[_EVENT] if not isinstance(call, Tripwire)]


def _rebuilds_from_name() -> bool:
    """Does `Model.train` build a network without checkpoint from its file name? 8.4.0 and older use `model.yaml`.

    Both have the same version of everything else, so the question is put to the method itself.
    """
    return "pretrained" in inspect.unwrap(Model.train).__code__.co_varnames
