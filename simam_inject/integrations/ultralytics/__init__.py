"""ultralytics: an injected YOLO stays injected through training, fusion, export and loading.

The library builds networks anew behind the user's back, from `model.yaml`, the one container that survives all of it.
So the sites are recorded there (`record`), and every network that is built from such a dict comes out injected
(`hooks`). Five things could still lose a site, and each has its guard:

    fuse() folds a norm across a SimAM between conv and norm     those blocks keep their norm (`fusing`)
    load() replaces head modules when class counts differ        the recorded sites are put back (`hooks`)
    train() rebuilds a YAML-built network from its file name     ultralytics' own switches (`training`)
    predict() keeps the fused copy of its first call             the copy is dropped (`refresh`)
    anything else                                                a tripwire before the first batch (`training`)

Importing this package arms it for the process; unpickling an injected module imports it. Networks without a record are
not touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

# Unpickling and the allow-list of restricted loading.
import simam_inject.rewriting.restoring  # noqa: F401
from simam_inject.errors import ModelError
from simam_inject.integrations.ultralytics.hooks import install
from simam_inject.integrations.ultralytics.record import Record, erase, write
from simam_inject.integrations.ultralytics.training import keep_through_training, train_as_stock
from simam_inject.integrations.ultralytics.versions import warn_if_untested

if TYPE_CHECKING:
    from simam_inject.planning.plan import Plan

__all__ = ["deployed", "forget", "network", "refresh", "remember"]


def network(model: nn.Module) -> nn.Module:
    """The network inside a `YOLO` object; a network itself.

    Raises:
        ModelError: the object holds an exported file, not a network.
    """
    if not _is_facade(model):
        return model
    inner = model.model
    if not isinstance(inner, nn.Module):
        raise ModelError(f"this {type(model).__name__} holds {inner!r}, not a network; load its .pt or .yaml file")
    return inner


def remember(model: nn.Module, plan: Plan) -> None:
    """Keep the injection through training, fusion, saving and export."""
    record = Record(plan.recipe.to_dict(), (*plan.present, *plan.insertions))
    write(network(model), record)
    if _is_facade(model):
        keep_through_training(model, record)
        refresh(model)


def forget(model: nn.Module) -> None:
    """Leave no trace of an injection."""
    erase(network(model))
    if _is_facade(model):
        train_as_stock(model)
        refresh(model)


def refresh(model: nn.Module) -> None:
    """Let the next `predict` copy and fuse the network as it is now. Trackers of a running `track` start anew."""
    if _is_facade(model):
        model.predictor = None  # type: ignore[assignment]


def deployed(model: nn.Module) -> Iterator[nn.Module]:
    """Copies with their norms folded away and without the branches that only training needs.

    An exporter keeps either of two heads, by its option `nms`; then there are two copies.
    """
    inner = network(model)
    choice = getattr(type(inner), "end2end", None)
    can_choose = bool(getattr(inner, "end2end", False)) and isinstance(choice, property) and choice.fset is not None
    for end2end in (False, True) if can_choose else (None,):
        twin: Any = copy.deepcopy(inner).eval()
        if end2end is not None:
            twin.end2end = end2end
        yield twin.fuse(verbose=False)


def _is_facade(model: nn.Module) -> bool:
    """A `YOLO`, `RTDETR`, ... object, which holds the network, rather than the network."""
    return any(base.__module__ == "ultralytics.engine.model" for base in type(model).__mro__)


warn_if_untested()
install()
