"""What commands begin with: the recipe of the options, checks that need no torch, the model, its plan, images."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simam_inject.cli.options import ModelOptions, RecipeOptions
from simam_inject.cli.program import Step
from simam_inject.errors import FileError, ModelError, NoMatchError, RecipeError
from simam_inject.zoo import ZooModel, build, load_weights
from simam_inject.zoo.names import find_library

if TYPE_CHECKING:
    from torch import Tensor

    from simam_inject.pictures import Photograph
    from simam_inject.planning.plan import Plan
    from simam_inject.recipe import Recipe

_WEIGHTS = (".safetensors", ".pth", ".ckpt", ".bin")
_EXPORTED = (".onnx", ".pt2", ".torchscript", ".engine")
_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def library_of(name: str, *, pretrained: bool = False, weights: object = None) -> str:
    """The library that a model name means, without importing torch.

    Raises:
        ModelError: it means weights or an exported graph, or nothing.
    """
    if pretrained and weights is not None:
        raise ModelError("--pretrained and --weights both load weights; give one of them")
    path = Path(name)
    if path.suffix in _WEIGHTS or (path.suffix == ".pt" and path.is_file() and not _is_checkpoint(path)):
        raise ModelError(f"{name} contains weights, not a model: give the model and add --weights {name}")
    if path.suffix in _EXPORTED:
        raise ModelError(f"{name} is an exported graph, which cannot be modified: give the model it was exported from")
    return find_library(name)


def _is_checkpoint(path: Path) -> bool:
    """Whether a file contains objects of ultralytics; in doubt it may, and loading it says what is wrong."""
    try:
        with zipfile.ZipFile(path) as opened:
            pickles = [opened.read(name) for name in opened.namelist() if name.endswith("data.pkl")]
    except (OSError, zipfile.BadZipFile):
        return True
    return not pickles or any(b"ultralytics" in data for data in pickles)


def selectors(options: RecipeOptions) -> list[str]:
    """What the options select with, in order: a recipe, then the places after and before."""
    recipe = [] if options.recipe is None else [options.recipe]
    return [*recipe, *(f"after {place}" for place in options.after), *(f"before {place}" for place in options.before)]


def compose_recipe(options: RecipeOptions) -> Recipe:
    """The one recipe that the options describe together."""
    from simam_inject.recipe import Recipe, adjusted, load_recipe

    parts = list(map(load_recipe, selectors(options)))
    if not parts:
        raise RecipeError("no site given: use --after BLOCK, --before BLOCK.CHILD or --recipe NAME")
    recipe = parts[0]
    if len(parts) > 1:
        name = ", ".join(part.name for part in parts)
        recipe = Recipe(name=name, e_lambda=recipe.e_lambda, rules=[rule for part in parts for rule in part.rules])
    return adjusted(recipe, options.exclude, options.e_lambda)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model with its weights, and the inputs of one forward."""

    built: ZooModel
    declared: tuple[int, ...]
    """Channels and spatial sizes of the input that the network itself declares."""

    @property
    def model(self) -> Any:
        """The network, or the `YOLO` object."""
        return self.built.model

    @property
    def inputs(self) -> Any:
        """For `example_inputs`; None for those that the network declares."""
        return self.built.example_inputs

    @property
    def code(self) -> str:
        """For `example_inputs` in Python, after a comma; "" where the network declares these inputs itself."""
        shapes = self.built.input_shapes
        if not shapes or shapes == ((1, *self.declared),):
            return ""
        tensors = ", ".join(f"torch.rand({', '.join(map(str, shape))})" for shape in shapes)
        whole = f"[{tensors}]" if self.built.takes_list else tensors if len(shapes) == 1 else f"({tensors})"
        return f", example_inputs={whole}"


def prepare(options: ModelOptions, step: Step) -> Prepared:
    """Build the model, load its weights, and find out which inputs it takes."""
    library_of(options.model, pretrained=options.pretrained, weights=options.weights)
    step("building the model")
    from simam_inject.adapters import network_of
    from simam_inject.dataflow.example import declared_size

    if options.seed is not None:
        import torch

        torch.manual_seed(options.seed)
    built = build(options.model, pretrained=options.pretrained, num_classes=options.num_classes)
    if options.weights is not None:
        built = load_weights(built, options.weights)
    if options.input_size is not None:
        built = built.with_size(options.input_size)
    return Prepared(built, declared_size(network_of(built.model)))


def make_plan(options: RecipeOptions, step: Step, strength: float = 1.0) -> tuple[Prepared, Plan]:
    """The model and the plan of its recipe.

    Raises:
        NoMatchError: the recipe has no effect.
    """
    recipe = compose_recipe(options)
    prepared = prepare(options, step)
    from simam_inject import api

    step("planning")
    model, inputs = prepared.model, prepared.inputs
    try:
        plan = api.make_plan(model, recipe, inputs, strength)
    except NoMatchError as error:  # a message about the option is clearer than one about a rule that contains it
        api.check_exclude("--exclude", options.exclude, api.survey(model, example_inputs=inputs))
        advice = "\nto start over, call eject(model) in Python, or give a file without SimAM"
        raise NoMatchError(f"{error}{advice * ('eject(model)' in str(error))}") from None
    except ModelError as error:
        if options.input_size is None or len(options.input_size) != 2:
            raise
        size = "x".join(map(str, options.input_size))
        advice = f"--input-size {size} is channels x length; an image is channels x height x width: 3x{size}"
        raise ModelError(f"{error}\n{advice}") from None
    api.check_exclude("--exclude", options.exclude, plan.anatomy)
    if not plan.insertions and not plan.is_done:
        raise NoMatchError(api.no_effect(plan))
    return prepared, plan


def images_in(folder: Path, limit: int = 256) -> list[Path]:
    """The images of a folder and its subfolders in order of their names; of more than `limit`, evenly spaced ones."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES)
    if not found:
        raise FileError(f"no image found in {str(folder)!r}; supported formats: {', '.join(_IMAGES)}")
    return found if len(found) <= limit else [found[index * len(found) // limit] for index in range(limit)]


def read_image(prepared: Prepared, file: Path) -> Photograph:
    """An image as the model takes it."""
    from simam_inject.pictures import photograph

    built = prepared.built
    shapes = built.input_shapes or ((1, *prepared.declared),)
    if built.takes_list or len(shapes) > 1 or len(shapes[0]) != 4 or shapes[0][1] not in (1, 3):
        raise ModelError(f"{built.name} does not take batches of images of one size")
    _, channels, height, width = shapes[0]
    letterbox = built.source == "ultralytics" and getattr(built.model, "task", "") != "classify"
    return photograph(file, (channels, height, width), normalization=built.normalization, letterbox=letterbox)


def batches_of(prepared: Prepared, files: list[Path]) -> Iterable[Tensor]:
    """Batches of images in mixed order, since a folder may be sorted by class; read again in each pass."""
    import torch
    from torch.utils.data import DataLoader

    random.Random(0).shuffle(files)
    return DataLoader(
        files,  # type: ignore[arg-type]
        batch_size=16,
        collate_fn=lambda part: torch.cat([read_image(prepared, file).input for file in part]),
    )
