"""`set_strength` and `Ramp`: the strength of SimAM, from 0 (the original network) to 1."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

from torch import nn

from simam_inject.adapters import network_of, update
from simam_inject.attention import ArgumentError, SimAM
from simam_inject.attention.arguments import check_count, check_number
from simam_inject.editing.attach import attended_in, simams_in
from simam_inject.errors import ModelError


def set_strength(model: nn.Module, value: float) -> None:
    """Set the strength of every SimAM in a model, in place: x * ((1 - strength) + strength * gain * gate).

    Works at any time, also on a model that is compiled or wrapped in `DistributedDataParallel`. A copy of the model (an
    EMA, `deepcopy`) has a strength of its own: set it there too.

    Args:
        model: a model with SimAM in it, or an ultralytics `YOLO`.
        value: from 0, where the outputs are those of the network without SimAM, bit for bit, to 1.

    Raises:
        ArgumentError: the value is not a number from 0 to 1.
        ModelError: the model has no SimAM.

    Example:
        >>> import torchvision
        >>> from simam_inject import inject
        >>> model = inject(torchvision.models.resnet18(), "paper", verify=False)
        >>> set_strength(model, 0.5)
        >>> model.layer1[0].conv2.simam
        SimAM(e_lambda=0.1, strength=0.5)
    """
    strength = check_number("strength", value)
    for _, attention in named_simams(model):
        attention.strength = strength
    update(model)


def named_simams(model: nn.Module) -> list[tuple[str, SimAM]]:
    """The SimAMs of a model in module order, each with the path of its site; `path before reader` if others share it.

    Raises:
        ModelError: the model is not a module, or has no SimAM.
    """
    network = network_of(model)
    found = simams_in(network)
    if not found:
        attentions = (entry.attention for entry in attended_in(network))
        other = next((type(attention).__name__ for attention in attentions if attention is not None), None)
        if other is not None:
            raise ModelError(f"the sites of this model hold {other}, which has no strength and no gain as SimAM")
        raise ModelError("no SimAM in this model; inject(model, recipe) adds it")
    count = Counter(site.path for site, _ in found)
    return [
        (f"{site.path} before {site.reader}" if count[site.path] > 1 and site.reader else site.path, attention)
        for site, attention in found
    ]


def ramped(start: float, progress: float) -> float:
    """The strength of a ramp from `start` to 1 after a share of its length."""
    return start + (1.0 - start) * progress if progress < 1.0 else 1.0


class Ramp:
    """Raises the strength of a model's SimAMs in equal steps to 1, while the model is fine-tuned.

    Fit the gains first (`calibrate`): the outputs at strength 0 are those of the original network, and accuracy changes
    little afterwards. Without gains, the running statistics of the norms lag behind a signal that gets weaker with each
    step, and evaluation in the middle of the ramp is worse than without a ramp.

    Args:
        model: a model with SimAM in it.
        *more: copies of the model, such as `AveragedModel(model)`, which get the same strength.
        steps: number of calls of `step` until the strength is 1; a fifth of the training is a good length.
        start: the strength before the first step; it is set at once.

    Raises:
        ArgumentError: `steps` is not a whole number above 0, or `start` not a number from 0 to 1.
        ModelError: one of the models has no SimAM.

    Example:
        >>> import torchvision
        >>> from simam_inject import inject
        >>> model = inject(torchvision.models.resnet18(), "paper", verify=False)
        >>> model.layer1[0].conv2.simam.gain = 1.3  # calibrate(model, loader) fits it
        >>> ramp = Ramp(model, steps=4)
        >>> [ramp.step() for _ in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    def __init__(self, model: nn.Module, *more: nn.Module, steps: int, start: float = 0.0) -> None:
        self._models: tuple[nn.Module, ...] = ()
        attentions = [[attention for _, attention in named_simams(one)] for one in (model, *more)]
        self.load_state_dict({"steps": steps, "start": start, "done": 0})
        if any(all(attention.gain == 1.0 for attention in found) for found in attentions):
            warnings.warn(
                "a ramp without gains makes the statistics of norms lag behind, which costs more accuracy on the way "
                "than it saves; calibrate(model, batches) fits them (before copies are made)",
                stacklevel=2,
            )
        self._models = (model, *more)  # none is set before all are checked, nor if the warning is an error
        self._set()

    @property
    def strength(self) -> float:
        """The strength now."""
        return ramped(self._start, self._done / self._steps)

    @property
    def finished(self) -> bool:
        """The strength is 1, where further steps keep it."""
        return self._done >= self._steps

    def step(self) -> float:
        """Go one step and return the strength. Call it after each step of the optimizer.

        Raises:
            ModelError: one of the models has no SimAM now. Nothing has changed.
        """
        self.load_state_dict({**self.state_dict(), "done": self._done + (not self.finished)})
        return self.strength

    def state_dict(self) -> dict[str, Any]:
        """Length, start and number of steps done, as plain numbers."""
        return {"steps": self._steps, "start": self._start, "done": self._done}

    def load_state_dict(self, state: Any) -> None:
        """Continue another ramp: take over its length, start and steps, and set the strength of the models.

        Raises:
            ArgumentError: `state` is not the state of a ramp.
            ModelError: one of the models has no SimAM now. Nothing has changed.
        """
        if not isinstance(state, dict) or state.keys() != {"steps", "start", "done"}:
            raise ArgumentError(f"not the state of a Ramp: {state!r:.120}")
        steps, done = check_count("steps", state["steps"], least=1), check_count("done", state["done"])
        start = check_number("start", state["start"])
        for model in self._models:
            named_simams(model)  # or an error, before anything is set
        self._steps, self._start, self._done = steps, start, done
        self._set()

    def _set(self) -> None:
        for model in self._models:
            set_strength(model, self.strength)
