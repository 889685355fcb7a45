"""timm: models with SimAM by name, and SimAM as one of timm's attention layers.

Once this module is imported,

    timm.create_model("resnet50_simam_paper")               resnet50 with the shipped recipe `paper`
    timm.create_model("resnet50_simam_paper.a1_in1k", pretrained=True)
                                                            the weights of resnet50.a1_in1k, then the recipe
    timm.layers.create_attn("simam", channels)              the layer, for those who build blocks

A variant is an architecture of its own: a tag, as in `resnet50.simam_paper`, chooses among published weights in timm,
and its `train.py` resolves it before the model is built, so that a recipe there would be lost. Any model and any
shipped recipe make a name; hyphens become underscores (`convnext_atto_simam_every_conv`). Variants enter the registry
when they are first asked for, and `list_models` is not flooded. Recipes of your own: `register`.

For a script that does not import this package, e.g. timm's own:

    python -m simam_inject.integrations.timm train.py --model resnet50_simam_paper ...
    torchrun --nproc-per-node 8 -m simam_inject.integrations.timm train.py --model resnet50_simam_paper ...
"""

from __future__ import annotations

import functools
import re
import runpy
import sys
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import timm.layers
from timm.models import DefaultCfg, PretrainedCfg, generate_default_cfgs, get_pretrained_cfg, register_model
from timm.models import _registry as registry
from torch import nn

from simam_inject.attention import SimAM
from simam_inject.errors import ModelError
from simam_inject.persist import watch
from simam_inject.recipe import Recipe, load_recipe
from simam_inject.recipe.shelf import shipped_recipes
from simam_inject.surgery import inject

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
        options: what timm tells every attention layer (`act_layer`, `rd_ratio`, `device`, ...); not used either.

    Raises:
        TypeError: an option of another name.

    Shape:
        (N, C, H, W), same as the input.
    """

    def __init__(self, channels: int, e_lambda: float = 1e-4, **options: Any) -> None:  # noqa: ARG002
        unknown = sorted(options.keys() - _LAYER_OPTIONS)
        if unknown:
            raise TypeError(f"SimamAttn has no option {unknown[0]!r}; it has channels and e_lambda")
        super().__init__(e_lambda)


def register(architecture: str, recipe: Any, name: str | None = None) -> str:
    """Add a model of timm with SimAM to timm's registry.

    Args:
        architecture: name of the model in timm, without a tag.
        recipe: whatever `simam_inject.inject` takes.
        name: of the new model; None for `ARCHITECTURE_simam_RECIPE`, from the recipe's own name.

    Returns:
        The name, for `timm.create_model`.

    Raises:
        ModelError: timm has no such model, or has one of the new name already, or a model cannot have it.
        RecipeError: the recipe is not valid.
    """
    resolved = load_recipe(recipe)
    if "." in architecture or not timm.is_model(architecture):
        near = get_close_matches(architecture.partition(".")[0], timm.list_models(), 3)
        advice = f"; did you mean {', '.join(near)}?" if near else ""
        raise ModelError(f"timm has no model {architecture!r}; a name without a tag is wanted{advice}")
    if name is None:
        name = f"{architecture}{SEPARATOR}{_word(resolved.name)}"
    if not name.isidentifier():
        raise ModelError(f"a model of timm cannot be named {name!r}: letters, digits and _ only; pass name=...")
    if name in timm.list_models():
        raise ModelError(f"timm has a model {name!r} already; pass another name=...")
    _enter(name, architecture, resolved)
    return name


def _enter(name: str, architecture: str, recipe: Recipe) -> None:
    """Register one variant, with the published weights of its architecture."""
    create = timm.model_entrypoint(architecture)

    def entrypoint(pretrained: bool = False, **options: Any) -> nn.Module:
        model: nn.Module = create(pretrained=pretrained, **options)
        config = getattr(model, "pretrained_cfg", None)
        if isinstance(config, dict):
            config["architecture"] = name  # timm writes it into config.json, and reads it from there
        return inject(model, recipe)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = __name__
    entrypoint.__doc__ = f"{architecture} with SimAM: {recipe.description or recipe.name}."
    default_cfgs[name] = _published(architecture, name)
    register_model(entrypoint)
    globals()[name] = entrypoint  # register_model lists it in `__all__`


def _published(architecture: str, name: str) -> DefaultCfg:
    """The published weights of an architecture, under the name of a variant."""
    default = get_pretrained_cfg(architecture)
    tags = [timm.models.split_model_name_tag(full)[1] for full in timm.list_models(architecture, include_tags=True)]
    configs: dict[str, dict[str, Any] | PretrainedCfg] = {}
    for tag in tags:
        config = get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
        if config is not None:
            is_default = default is not None and (default.tag or "") == tag
            configs[f"{name}.{tag}*" if tag and is_default else f"{name}.{tag}" if tag else name] = config
    published: DefaultCfg = generate_default_cfgs(configs).get(name, DefaultCfg())
    return published


def _word(text: str) -> str:
    """A recipe's name as a part of a model's name."""
    return re.sub(r"\W+", "_", text).strip("_")


class _Entrypoints(dict[str, Callable[..., nn.Module]]):
    """timm's table of models, in which a variant of a shipped recipe is entered when it is first asked for."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or self._enter_variant(name)

    def __missing__(self, name: str) -> Callable[..., nn.Module]:
        if self._enter_variant(name):
            return self[name]
        raise KeyError(name)

    def _enter_variant(self, name: object) -> bool:
        if not isinstance(name, str) or name in default_cfgs:  # the latter while it is being entered
            return False
        architecture, separator, word = name.rpartition(SEPARATOR)
        if not separator or architecture not in self:
            return False
        recipes = {_word(shipped): shipped for shipped in shipped_recipes()}
        if word not in recipes:
            near = get_close_matches(word, recipes, 1)
            advice = f"; did you mean {architecture}{SEPARATOR}{near[0]}?" if near else ""
            warnings.warn(
                f"{name}: no shipped recipe is called {word}, only {', '.join(recipes)}{advice}", stacklevel=4
            )
            return False
        _enter(name, architecture, load_recipe(recipes[word]))
        return True


def _offer_models() -> None:
    """Put our table in the place of timm's; `timm.models._registry` has kept it in this name since timm 0.4."""
    if not isinstance(registry._model_entrypoints, _Entrypoints):
        registry._model_entrypoints = _Entrypoints(registry._model_entrypoints)


def _offer_attention() -> None:
    """Let `get_attn`, wherever timm has imported it, know `simam`; `create_attn` asks it."""
    plain: Callable[[Any], Any] = vars(timm.layers)["get_attn"]
    if hasattr(plain, "_simam_plain"):
        return

    @functools.wraps(plain)
    def get_attn(attn_type: Any) -> Any:
        return SimamAttn if isinstance(attn_type, str) and attn_type.lower() == "simam" else plain(attn_type)

    get_attn._simam_plain = plain  # type: ignore[attr-defined]
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "timm" and vars(module).get("get_attn") is plain:
            module.get_attn = get_attn  # type: ignore[attr-defined]


_offer_models()
_offer_attention()


def run_script(arguments: list[str]) -> None:
    """Run a Python script, its name first in `arguments`, in a process that knows the models of this module."""
    if not arguments:
        raise SystemExit("usage: python -m simam_inject.integrations.timm SCRIPT.py [its arguments]")
    script = arguments[0]
    sys.argv = arguments
    sys.path.insert(0, str(Path(script).resolve().parent))
    watch()
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    from simam_inject.integrations.timm import run_script as run  # this very file, as the module timm knows it by

    run(sys.argv[1:])
