"""ultralytics: an injected YOLO stays injected through training, fusion, export and loading.

The library builds new networks from `model.yaml` when it trains, resumes and tunes; it copies that dict wherever the
network goes. So the sites are recorded there (`record`), and every network that is built from such a dict is injected
(`networks`). Six things could still lose a site:

    fuse() folds a norm across a SimAM between conv and norm     such a block is not folded (`networks`)
    load() replaces head modules when class counts differ        the recorded sites are restored (`networks`)
    train() rebuilds a YAML-built network from its file name     ultralytics' own switches (`training`)
    trainers of YOLO-World and YOLOE build the file it names     the record is put into what they build (`training`)
    predict() runs the fused copy that its first call made       the copy is dropped (`training`)
    anything else                                                a check before the first batch (`training`)

Importing this package changes these functions for the process; unpickling an injected network imports it, and so does
`simam_inject` where ultralytics is imported already. Networks without a record are not affected.
"""

from __future__ import annotations

import contextlib
import copy
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import ultralytics
from torch import nn
from torch.utils.data import DataLoader, Subset
from ultralytics.data.utils import check_cls_dataset, check_det_dataset
from ultralytics.engine.model import Model

from simam_inject.adapters import Adapter
from simam_inject.attention import SimAM
from simam_inject.dataflow.example import declared_size
from simam_inject.editing.attach import attended_in
from simam_inject.errors import ModelError, describe_exception
from simam_inject.integrations.ultralytics import networks as networks
from simam_inject.integrations.ultralytics.record import check_applied, erase, write
from simam_inject.integrations.ultralytics.training import ramp

__all__ = ["ramp"]

OLDEST, NEWEST = "8.4.0", "8.4.190"
"""Releases of ultralytics that this adapter is tested with."""


class UltralyticsAdapter(Adapter):
    """The sites are recorded in the network's yaml, and `predict` copies the network again when it has changed."""

    def network(self, model: nn.Module) -> nn.Module:
        """The network inside a `YOLO` object, which may hold an exported file instead; a network itself."""
        inner = model.model if isinstance(model, Model) else model
        if not isinstance(inner, nn.Module):
            raise ModelError(f"this {type(model).__name__} holds {inner!r}, not a network; load its .pt or .yaml file")
        return inner

    def check(self, network: nn.Module) -> None:
        """Refuse a network whose yaml has a recipe that was not applied; see `check_applied`."""
        check_applied(network)

    def update(self, model: nn.Module) -> None:
        """Write the sites into the network's yaml as well. Trackers of a running `track` start again."""
        super().update(model)
        network = self.network(model)
        if isinstance(model, Model):
            model.predictor = None  # it has a copy
        attention = [entry.attention for entry in attended_in(network)]
        if attention and all(isinstance(part, SimAM) for part in attention):
            write(network)
        else:  # ejected; or peers of SimAM, which cannot be rebuilt: `train` says so
            erase(network)

    def after_load(self, model: nn.Module) -> None:
        """Let `train` start from the weights in memory, as after `YOLO.load`: without checkpoint it starts anew."""
        self.update(model)
        if isinstance(model, Model):
            model.ckpt = {**(model.ckpt or {}), "model": model.model, "epoch": -1, "optimizer": None}  # not resumable
            model.overrides.pop("pretrained", None)

    def exported_copies(self, model: nn.Module) -> Iterator[nn.Module]:
        """Copies with folded norms and without the branches that only training needs.

        Of two heads, an export contains one, depending on its option `nms`: then there are two copies.
        """
        network: Any = self.network(model)
        for end2end in (False, True) if getattr(network, "end2end", False) else (None,):
            twin = copy.deepcopy(network).eval()
            with contextlib.suppress(AttributeError):  # older releases leave no choice
                if end2end is not None:
                    twin.end2end = end2end
            yield twin.fuse(verbose=False)

    def batches(self, model: nn.Module, data: str) -> Iterable[Any] | None:
        """Batches of at most 512 training images, in mixed order, resized as for validation and not augmented.

        They are those that the validator of the model's task reads. Only a `YOLO` object can read a data set.
        """
        if not isinstance(model, Model):
            return None
        try:
            with tempfile.TemporaryDirectory() as folder:  # a validator makes a folder for its results
                default = {"imgsz": declared_size(model.model)[1]}
                options = {**default, **model.overrides, "data": data, "mode": "val", "split": "train", "rect": False}
                validator = model._smart_load("validator")(args=options, save_dir=Path(folder))
            validator.data = (check_cls_dataset if model.task == "classify" else check_det_dataset)(data)
            validator.stride, validator.names = int(max(model.model.stride)), validator.data["names"]
            images = validator.build_dataset(validator.data["train"])
        except Exception as error:
            raise ModelError(f"ultralytics cannot read the data set {data!r}: {describe_exception(error)}") from error
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0), device="cpu").tolist()[:512]
        return DataLoader(Subset(images, order), 16, collate_fn=getattr(images, "collate_fn", None))


def warn_if_untested(version: str = ultralytics.__version__) -> None:
    """Warn about a release that was not tested."""
    oldest, found, newest = (list(map(int, re.findall(r"\d+", one)))[:3] for one in (OLDEST, version, NEWEST))
    if not oldest <= found <= newest:
        advice = "call verify(model), and `simam-inject check best.pt` after training"
        problem = f"ultralytics {version} is outside the range that was tested, {OLDEST} to {NEWEST}"
        warnings.warn(f"{problem}: {advice}", stacklevel=2)


warn_if_untested()
ADAPTER = UltralyticsAdapter(__name__)
