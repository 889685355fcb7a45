"""What commands begin with: checks that need no torch, the recipe of the options, the model, images of a folder."""

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

WEIGHTS = (".safetensors", ".pth", ".ckpt", ".bin")
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model with its weights, and the inputs of one forward."""

    built: ZooModel
    size: tuple[int, ...] | None
    """As given with `--input-size`."""

    @property
    def inputs(self) -> Any:
        """For `example_inputs`."""
        return self.built.example_inputs

    @property
    def declared(self) -> tuple[int, ...]:
        """The input size that the network itself declares."""
        from simam_inject.adapters import network_of
        from simam_inject.dataflow.example import declared_size

        return declared_size(network_of(self.built.model))

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels and spatial sizes of one image."""
        shapes = self.built.input_shapes
        return self.declared if not shapes else shapes[0] if self.built.takes_list else shapes[0][1:]

    @property
    def code(self) -> str:
        """The argument `example_inputs` in Python, where these are not the inputs that the network declares."""
        shapes, takes_list = self.built.input_shapes, self.built.takes_list
        if not shapes or shapes == ((1, *self.declared),):
            return ""
        tensors = ", ".join(f"torch.rand({', '.join(map(str, shape))})" for shape in shapes)
        whole = f"[{tensors}]" if takes_list else tensors if len(shapes) == 1 else f"({tensors})"
        return f", example_inputs={whole}"


def check_model(name: str) -> str:
    """The library of a model name; an error for what is none, before torch is imported.

    Raises:
        ModelError: no library has the name, or it is a file of something else.
    """
    path = Path(name)
    if path.suffix in WEIGHTS or (path.suffix == ".pt" and path.is_file() and not _is_checkpoint(path)):
        raise ModelError(f"{name} contains weights, not a model: give the model and add --weights {name}")
    if path.suffix in (".onnx", ".pt2", ".torchscript", ".engine"):
        raise ModelError(f"{name} is an exported graph, to which SimAM cannot be added: inject, then export")
    return find_library(name)


def _is_checkpoint(path: Path) -> bool:
    """Whether a file contains objects of ultralytics; in doubt it may, and loading it says what is wrong."""
    try:
        with zipfile.ZipFile(path) as opened:
            pickles = [opened.read(name) for name in opened.namelist() if name.endswith("data.pkl")]
    except (OSError, zipfile.BadZipFile):
        return True
    return not pickles or any(b"ultralytics" in data for data in pickles)


def compose_recipe(options: RecipeOptions) -> Recipe:
    """The recipe that the options describe together.

    Raises:
        RecipeError: there is none, or one part is not valid.
    """
    from simam_inject.recipe import Recipe, adjusted, load_recipe

    places = [f"after {place}" for place in options.after] + [f"before {place}" for place in options.before]
    parts = [load_recipe(part) for part in (*filter(None, [options.recipe]), *places)]
    if not parts:
        raise RecipeError("no site given: use --after BLOCK, --before BLOCK.CHILD or --recipe NAME")
    recipe = parts[0]
    if len(parts) > 1:
        name = ", ".join(part.name for part in parts)
        recipe = Recipe(name=name, e_lambda=recipe.e_lambda, rules=[rule for part in parts for rule in part.rules])
    return adjusted(recipe, options.exclude, options.e_lambda)


def prepare(options: ModelOptions, step: Step) -> Prepared:
    """Build the model, load its weights, and find out which inputs it takes.

    Raises:
        InjectError: the model or the weights cannot be used.
    """
    if options.pretrained and options.weights is not None:
        raise ModelError("--pretrained and --weights both load weights; give one of them")
    check_model(options.model)
    step("building the model")
    if options.seed is not None:
        import torch

        torch.manual_seed(options.seed)
    built = build(options.model, pretrained=options.pretrained, num_classes=options.num_classes)
    if options.weights is not None:
        built = load_weights(built, options.weights)
    return Prepared(built if options.input_size is None else built.with_size(options.input_size), options.input_size)


def make_plan(prepared: Prepared, recipe: Recipe, options: RecipeOptions, strength: float = 1.0) -> Plan:
    """The plan of a command.

    Raises:
        InjectError: the model cannot be planned, or the recipe or `--exclude` has no effect.
    """
    from simam_inject import api

    model, size = prepared.built.model, prepared.size
    try:
        plan = api.make_plan(model, recipe, prepared.inputs, strength)
    except NoMatchError as error:
        api.check_exclude("--exclude", options.exclude, api.survey(model, example_inputs=prepared.inputs))
        advice = "\nto start again: in Python: eject(model); here: give a file without SimAM"
        raise NoMatchError(f"{error}{advice * ('eject(model)' in str(error))}") from None
    except ModelError as error:
        if size is None or len(size) != 2:
            raise
        text = "x".join(map(str, size))
        raise ModelError(
            f"{error}\n--input-size {text} is channels x length; an image is channels x height x width: 3x{text}"
        ) from None
    api.check_exclude("--exclude", options.exclude, plan.anatomy)
    if not plan.insertions and not plan.is_done:
        raise NoMatchError(api.no_effect(plan))
    return plan


def images_in(folder: Path, limit: int = 256) -> list[Path]:
    """Images of a folder and its subfolders, in the order of their names; at most `limit`, spread evenly.

    Raises:
        FileError: there is none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not found:
        raise FileError(f"no image found in {str(folder)!r}; images end in {', '.join(IMAGES)}")
    return found if len(found) <= limit else [found[index * len(found) // limit] for index in range(limit)]


def read_image(prepared: Prepared, file: Path) -> Photograph:
    """An image as the model takes it.

    Raises:
        ModelError: the model takes something else than batches of images.
        FileError: it cannot be read.
    """
    from simam_inject.pictures import photograph

    built = prepared.built
    if built.takes_list or len(built.input_shapes) > 1 or len(prepared.shape) != 3 or prepared.shape[0] not in (1, 3):
        raise ModelError(f"{built.name} does not take batches of images of one size")
    channels, height, width = prepared.shape
    letterbox = built.source == "ultralytics" and getattr(built.model, "task", "") != "classify"
    return photograph(file, (channels, height, width), normalization=built.normalization, letterbox=letterbox)


def batches_of(prepared: Prepared, files: list[Path]) -> Iterable[Tensor]:
    """Batches of images, read again in each pass, in mixed order: a folder may be sorted by class, and each batch needs
    several classes.
    """
    import torch
    from torch.utils.data import DataLoader

    random.Random(0).shuffle(files)
    return DataLoader(
        files,  # type: ignore[arg-type]
        batch_size=16,
        collate_fn=lambda part: torch.cat([read_image(prepared, file).input for file in part]),
    )
