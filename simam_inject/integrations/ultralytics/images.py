"""Images of a data set, read as the library reads them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from ultralytics.data.utils import check_cls_dataset, check_det_dataset

from simam_inject.errors import ModelError

_COUNT, _BATCH = 512, 16


def training_images(model: Any, data: str) -> Iterable[Any]:
    """Batches of at most 512 training images, in mixed order, resized as for validation and not augmented.

    The validator of the model's task builds the set, so every task gets the images that it would be validated on.

    Raises:
        ModelError: ultralytics cannot read the data set.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:  # a validator makes a folder for its results
            options = {**model.overrides, "data": data, "mode": "val", "split": "train", "rect": False}
            validator = model._smart_load("validator")(args=options, save_dir=Path(folder))
        validator.data = (check_cls_dataset if model.task == "classify" else check_det_dataset)(data)
        validator.stride, validator.names = int(max(model.model.stride)), validator.data["names"]
        images = validator.build_dataset(validator.data["train"])
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"ultralytics cannot read the data set {data!r}: {reason[0]}") from error
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    return DataLoader(Subset(images, order[:_COUNT]), _BATCH, collate_fn=getattr(images, "collate_fn", None))
