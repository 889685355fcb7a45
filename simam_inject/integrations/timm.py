"""timm: models with SimAM by name, and SimAM as one of timm's attention layers.

    register("resnet50", "paper")                           the name `resnet50_simam_paper`, for
    timm.create_model("resnet50_simam_paper")               resnet50 with the shipped recipe `paper`
    timm.create_model("resnet50_simam_paper.a1_in1k", pretrained=True)
                                                            the weights of resnet50.a1_in1k, then the recipe
    timm.layers.create_attn(SimamAttn, channels)            the layer, wherever timm takes an attention layer

A variant is an architecture of its own: a tag, as in `resnet50.simam_paper`, chooses among published weights in timm,
and its `train.py` resolves it before the model is built, so that a recipe there would be lost.

For a script that does not import this package, e.g. timm's own:

    python -m simam_inject.integrations.timm train.py --model resnet50_simam_paper ...
    torchrun --nproc-per-node 8 -m simam_inject.integrations.timm train.py --model resnet50_simam_paper ...
"""

from __future__ import annotations

import builtins
import keyword
import re
import runpy
import sys
from collections import deque
from pathlib import Path
from typing import Any

import timm
import timm.layers
from timm.models import DefaultCfg, get_arch_pretrained_cfgs, register_model
from torch import nn

from simam_inject.api import inject
from simam_inject.attention import SimAM
from simam_inject.errors import InjectError, ModelError
from simam_inject.recipe import RecipeLike, load_recipe, shipped_recipes
from simam_inject.zoo.names import unknown_model

__all__ = ["SimamAttn", "register"]

SEPARATOR = "_simam_"
_LAYER_OPTIONS = {"act_layer", "gate_layer", "norm_layer", "rd_ratio", "rd_channels", "rd_divisor", "device", "dtype"}
default_cfgs: dict[str, Any] = {}
"""Where `timm.models.register_model` looks for the published weights of the models of this module."""


class SimamAttn(SimAM):
    """SimAM with the constructor that timm calls its attention layers by.

    Args:
        channels: not needed, and not used: SimAM has no weights.
        e_lambda: see `SimAM`.
        options: what timm passes to every attention layer (`act_layer`, `rd_ratio`, `device`, ...); not used either.

    Raises:
        TypeError: an option of another name.

    Shape:
        (N, C, H, W), same as the input.
    """

    def __init__(self, channels: int, e_lambda: float = 1e-4, **options: Any) -> None:  # noqa: ARG002
        unknown = sorted(options.keys() - _LAYER_OPTIONS)
        if unknown:
            raise TypeError(f"SimamAttn has no option {unknown[0]!r}; the options are channels and e_lambda")
        super().__init__(e_lambda)


def register(architecture: str, recipe: RecipeLike, name: str | None = None) -> str:
    """Add a model of timm with SimAM to timm's registry.

    Args:
        architecture: name of the model in timm, without a tag.
        recipe: whatever `simam_inject.inject` takes.
        name: of the new model; None for `ARCHITECTURE_simam_RECIPE`, from the recipe's own name.

    Returns:
        The name, for `timm.create_model`.

    Raises:
        ModelError: timm has no such model, or has another one of the new name, or a model cannot have it.
        RecipeError: the recipe is not valid.

    Example:
        >>> timm.create_model(register("resnet18", "paper")).layer1[0].conv2.simam
        SimAM(e_lambda=0.1)
    """
    resolved = load_recipe(recipe)
    if "." in architecture:
        raise ModelError(f"{architecture!r} has a tag, which chooses weights: register a name without a tag")
    if not timm.is_model(architecture):
        raise unknown_model(architecture, "timm")
    name = name or f"{architecture}{SEPARATOR}{_word(resolved.name)}"
    if not name.isidentifier() or name.endswith(SEPARATOR):
        raise ModelError(f"invalid name for a timm model: {name!r}: letters, digits and _ only; pass name=...")
    if timm.is_model(name) and getattr(timm.model_entrypoint(name), "made_from", None) == (architecture, resolved):
        return name
    if timm.is_model(name):
        raise ModelError(f"timm already has a model {name!r}; pass another name=...")
    if keyword.iskeyword(name) or name in {*globals(), *dir(builtins)}:  # the model becomes a global of this module
        raise ModelError(f"the name {name!r} is taken by Python or by {__name__}; pass another name=...")
    create = timm.model_entrypoint(architecture)

    def entrypoint(pretrained: bool = False, **options: Any) -> nn.Module:
        model: nn.Module = create(pretrained=pretrained, **options)
        config = getattr(model, "pretrained_cfg", None)
        if isinstance(config, dict):
            config["architecture"] = name  # timm writes it into config.json, and reads it from there
        return inject(model, resolved)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = __name__
    vars(entrypoint)["made_from"] = architecture, resolved
    entrypoint.__doc__ = f"{architecture} with SimAM: {resolved.description or resolved.name}."
    config_by_tag = {config.tag or "": config for config in get_arch_pretrained_cfgs(architecture).values()}
    default_cfgs[name] = DefaultCfg(tags=deque(config_by_tag), cfgs=config_by_tag)  # the default tag is the first
    register_model(entrypoint)
    globals()[name] = entrypoint  # register_model lists it in `__all__`
    return name


def _word(text: str) -> str:
    """A recipe's name as a part of a model's name."""
    return re.sub(r"\W+", "_", text).strip("_")


def run_script(arguments: list[str]) -> None:
    """Run a Python script, its name first in `arguments`, in a process with the variants that the arguments name."""
    if not arguments:
        raise SystemExit("usage: python -m simam_inject.integrations.timm SCRIPT.py [its arguments]")
    shipped = {_word(name): name for name in shipped_recipes()}
    names, errors = [], list[InjectError]()
    for word in arguments[1:]:
        architecture, separator, recipe = word.rpartition("=")[2].partition(".")[0].rpartition(SEPARATOR)
        if separator:
            try:
                names.append(register(architecture, shipped.get(recipe, recipe)))
                if not names[-1].endswith(recipe):
                    errors.append(ModelError(f"no model of timm is called {word}; write {names.pop()}"))
            except InjectError as error:  # or not a model: a folder of results is named after it, too
                errors += [error] if timm.is_model(architecture) else []
    if errors and not names:
        raise SystemExit(f"error: {errors[0]}")
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    from simam_inject.integrations.timm import run_script as run  # this very file, as the module timm knows it by

    run(sys.argv[1:])
