"""What the commands do first: build the model, make its example inputs, compose the recipe, plan."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simam_inject.cli.options import EXPORTS, CompareOptions, ModelOptions, Options
from simam_inject.cli.program import Step
from simam_inject.errors import ModelError, NoMatchError, RecipeError
from simam_inject.zoo import ZooModel, build, load_weights
from simam_inject.zoo.names import find_library

if TYPE_CHECKING:
    from torch import Tensor

    from simam_inject import Plan
    from simam_inject.pictures import Photograph
    from simam_inject.recipe import Recipe

WEIGHTS = (".safetensors", ".pth", ".ckpt", ".bin")
"""Suffixes of files that hold weights, not a model that can be built; `.pt` is looked into."""
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that is ready to be looked at or injected."""

    options: ModelOptions
    built: ZooModel

    @property
    def model(self) -> Any:
        """The model itself."""
        return self.built.model

    @property
    def inputs(self) -> tuple[Any, ...] | None:
        """Noise in [0, 1) for one forward with one image, of `--input-size` or of the size that the zoo knows.

        None where the model itself declares its size (timm, ultralytics) or the size is not known.
        """
        import torch

        built, size, shapes = self.built, self.options.input_size, self.built.input_shapes
        if size is None and built.source != "torchvision":
            return None
        if size is not None:
            shapes = (tuple(size) if built.takes_list else (1, *size),) * max(1, len(shapes))
        noise = torch.Generator().manual_seed(0)
        images = [torch.rand(shape, generator=noise) for shape in shapes]
        return (images,) if built.takes_list else tuple(images)

    def heading(self, plan: Plan, more: str = "") -> str:
        """Names of model and recipe, and which weights it has."""
        return f"{self.built.name}, {plan.recipe.name or 'recipe'}{more} ({self.built.note})"

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function such as `plan` finds in the model on its example inputs."""
        try:
            return function(self.model, *arguments, example_inputs=self.inputs)
        except ModelError as error:
            size = self.options.input_size
            if size is None or len(size) != 2:
                raise
            raise ModelError(
                f"{error}\n--input-size {size} is channels x length; an image is channels x height x width: 3x{size}"
            ) from error

    def apply(self, plan: Plan, strength: float) -> None:
        """Carry out a plan."""
        from simam_inject.warmup import set_strength

        plan.apply()
        if strength != 1.0:
            set_strength(self.model, strength)

    def photograph(self, path: Path) -> Photograph:
        """A photograph as the model takes it."""
        from simam_inject.adapters import network_of
        from simam_inject.dataflow.example import declared_size
        from simam_inject.pictures import photograph

        built, shapes = self.built, self.built.input_shapes
        size = self.options.input_size or (shapes[0][1:] if shapes else declared_size(network_of(self.model)))
        if built.takes_list or len(shapes) > 1 or len(size) != 3 or size[0] not in (1, 3):
            raise ModelError(f"{built.name} does not take batches of images of one size")
        letterbox = built.source == "ultralytics" and getattr(self.model, "task", "") != "classify"
        return photograph(path, (size[0], size[1], size[2]), normalization=built.normalization, letterbox=letterbox)


def check_model_name(name: str) -> None:
    """Raise for a file of weights in the place of the model, and for an unknown name, before torch is imported."""
    path = Path(name)
    if path.suffix in EXPORTS:
        raise ModelError(f"{name} is an exported graph, which cannot be modified: give the model it was exported from")
    if path.suffix in WEIGHTS or (path.suffix == ".pt" and path.is_file() and not _is_yolo_checkpoint(path)):
        raise ModelError(
            f"{name} contains weights, not a model: give the model and add --weights {name}, "
            f"e.g. simam-inject resnet50 --weights {name} --after bottleneck"
        )
    find_library(name)


def check_weights(options: ModelOptions | CompareOptions) -> None:
    """Raise if two sources of weights are named: the second would overwrite the first."""
    if options.pretrained and options.weights is not None:
        raise ModelError(f"--pretrained and --weights {options.weights} are two sources of weights: give one of them")


def _is_yolo_checkpoint(path: Path) -> bool:
    """Whether a file written by torch.save names classes of ultralytics; nothing is unpickled."""
    if not zipfile.is_zipfile(path):
        return True  # old format: let ultralytics say what is wrong
    with zipfile.ZipFile(path) as file:
        return any(b"ultralytics" in file.read(name) for name in file.namelist() if name.endswith("data.pkl"))


def prepare(options: ModelOptions, step: Step, *, steps: int) -> Prepared:
    """Build the model that the options describe: the first of so many steps."""
    check_model_name(options.model)
    check_weights(options)
    step(f"building {options.model}", of=steps)
    if options.seed is not None:
        import torch

        torch.manual_seed(options.seed)
    built = build(options.model, pretrained=options.pretrained, num_classes=options.num_classes)
    return Prepared(options, built if options.weights is None else load_weights(built, options.weights))


def compose_recipe(options: Options) -> Recipe:
    """The rules of `--recipe`, then one for each selector; the first rule that takes a site owns it."""
    from simam_inject.recipe import Recipe, adjusted, load_recipe

    recipes = [load_recipe(text) for text in options.sources]
    if not recipes:
        raise RecipeError("no site given: use --after BLOCK, --before BLOCK.CHILD or --recipe NAME")
    rules = [rule.to_dict() for recipe in recipes for rule in recipe.rules]
    together = {**recipes[0].to_dict(), "name": ", ".join(recipe.name for recipe in recipes), "rules": rules}
    return adjusted(Recipe.from_dict(together), options.exclude or (), options.e_lambda)


def make_plan(options: Options, step: Step, *, steps: int) -> tuple[Prepared, Plan]:
    """Build the model and plan the recipe for it: the first two of so many steps.

    Raises:
        NoMatchError: The recipe, a rule of it or a glob of `--exclude` has no effect.
    """
    check_model_name(options.model)
    recipe = compose_recipe(options)
    prepared = prepare(options, step, steps=steps)
    step("running it once and planning")
    from simam_inject.api import check_exclude, no_effect, plan, survey

    exclude = options.exclude or ()
    try:
        found: Plan = prepared.run(plan, recipe)
    except NoMatchError as error:  # a word about the option helps more than one about a rule that it is in
        if exclude:
            check_exclude("--exclude", exclude, prepared.run(survey))
        raise NoMatchError(_with_remedy(str(error))) from None
    check_exclude("--exclude", exclude, found.anatomy)
    if not found.insertions and not found.is_done:
        raise NoMatchError(_with_remedy(no_effect(found)))
    return prepared, found


def _with_remedy(message: str) -> str:
    """On the command line `eject` cannot be called first."""
    from simam_inject.planning.records import PRESENT

    remedy = "to start again: in Python: eject(model); here: give a file without SimAM"
    return f"{message}\n{remedy}" if f"{PRESENT}, with" in message else message


def images_in(folder: Path, limit: int) -> list[Path]:
    """The images in a folder and its subfolders, in alphabetical order; spread over all of them if there are more."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not found:
        raise ModelError(f"no image found in {str(folder)!r}; supported formats: {', '.join(IMAGES)}")
    return found if len(found) <= limit else [found[index * len(found) // limit] for index in range(limit)]


def batches_of(prepared: Prepared, folder: Path) -> Iterable[Tensor]:
    """At most 256 images of a folder as the model takes them, in batches of at most 16, read anew in each pass.

    In mixed order: where folders are classes each batch would else hold one class, whose statistics are not the set's.
    """
    import torch
    from torch.utils.data import DataLoader

    paths = images_in(folder, limit=256)
    random.Random(0).shuffle(paths)
    read = prepared.photograph
    return DataLoader(paths, 16, collate_fn=lambda part: torch.cat([read(path).input for path in part]))  # type: ignore[arg-type]
