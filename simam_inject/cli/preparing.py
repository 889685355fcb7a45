"""What the commands do first: build the model, compose the recipe, plan; and read images as the model takes them."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
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
"""Suffixes of files that contain weights, not a model that can be built; a `.pt` may be either."""
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


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
        return True  # an older format, for which ultralytics raises an error
    with zipfile.ZipFile(path) as file:
        return any(b"ultralytics" in file.read(name) for name in file.namelist() if name.endswith("data.pkl"))


def prepare(options: ModelOptions, step: Step, *, steps: int) -> ZooModel:
    """Build the model that the options describe: the first of so many steps."""
    check_model_name(options.model)
    check_weights(options)
    step(f"building {options.model}", of=steps)
    if options.seed is not None:
        import torch

        torch.manual_seed(options.seed)
    built = build(options.model, pretrained=options.pretrained, num_classes=options.num_classes)
    if options.weights is not None:
        built = load_weights(built, options.weights)
    return built if options.input_size is None else built.with_size(options.input_size)


def compose_recipe(options: Options) -> Recipe:
    """The rules of `--recipe`, then one rule for each selector; a site belongs to the first rule that matches it."""
    from simam_inject.recipe import Recipe, adjusted, load_recipe

    recipes = [load_recipe(text) for text in options.sources]
    if not recipes:
        raise RecipeError("no site given: use --after BLOCK, --before BLOCK.CHILD or --recipe NAME")
    rules = [rule.to_dict() for recipe in recipes for rule in recipe.rules]
    together = {**recipes[0].to_dict(), "name": ", ".join(recipe.name for recipe in recipes), "rules": rules}
    return adjusted(Recipe.from_dict(together), options.exclude or (), options.e_lambda)


def make_plan(options: Options, step: Step, *, steps: int) -> tuple[ZooModel, Plan]:
    """Build the model and plan the recipe for it: the first two of so many steps.

    Raises:
        NoMatchError: The recipe, a rule of it or a glob of `--exclude` has no effect.
    """
    recipe = compose_recipe(options)
    built = prepare(options, step, steps=steps)
    step("running it once and planning")
    from simam_inject.api import check_exclude, no_effect, plan, survey

    exclude = options.exclude or ()
    try:
        found: Plan = run_example(plan, built, recipe)
    except NoMatchError as error:  # a message about the option is clearer than one about a rule that contains it
        if exclude:
            check_exclude("--exclude", exclude, run_example(survey, built))
        raise NoMatchError(_with_remedy(str(error))) from None
    check_exclude("--exclude", exclude, found.anatomy)
    if not found.insertions and not found.is_done:
        raise NoMatchError(_with_remedy(no_effect(found)))
    return built, found


def _with_remedy(message: str) -> str:
    """On the command line `eject` cannot be called first."""
    from simam_inject.planning.records import PRESENT

    remedy = "to start again: in Python: eject(model); here: give a file without SimAM"
    return f"{message}\n{remedy}" if f"{PRESENT}, with" in message else message


def run_example(function: Callable[..., Any], built: ZooModel, *arguments: Any) -> Any:
    """Call a function of the API such as `plan` with the model and its example inputs."""
    try:
        return function(built.model, *arguments, example_inputs=built.example_inputs)
    except ModelError as error:
        if [len(shape) for shape in built.input_shapes] != [3] or built.takes_list:
            raise
        size = "x".join(map(str, built.input_shapes[0][1:]))
        raise ModelError(
            f"{error}\n--input-size {size} is channels x length; an image is channels x height x width: 3x{size}"
        ) from error


def apply_plan(built: ZooModel, plan: Plan, strength: float) -> None:
    """Insert SimAM at the sites of a plan, with the strength of `--strength`."""
    from simam_inject.warmup import set_strength

    plan.apply()
    if strength != 1.0:
        set_strength(built.model, strength)


def as_inserted(built: ZooModel, plan: Plan) -> Plan:
    """An applied plan, with the strength and gain that its sites have now."""
    from simam_inject.api import injected

    site_by_module = {site.module: site for site in injected(built.model)}
    insertions, present = (
        tuple(site_by_module[site.module] for site in sites) for sites in (plan.insertions, plan.present)
    )
    return replace(plan, insertions=insertions, present=present)


def describe(built: ZooModel, plan: Plan, more: str = "") -> str:
    """Names of model and recipe, and which weights the model has."""
    return f"{built.name}, {plan.recipe.name}{more} ({built.note})"


def images_in(folder: Path, limit: int) -> list[Path]:
    """The images in a folder and its subfolders in alphabetical order; of more than `limit`, evenly spaced ones."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not found:
        raise ModelError(f"no image found in {str(folder)!r}; supported formats: {', '.join(IMAGES)}")
    return found if len(found) <= limit else [found[index * len(found) // limit] for index in range(limit)]


def read_photograph(built: ZooModel, path: Path) -> Photograph:
    """A photograph at the input size of the model."""
    from simam_inject.adapters import network_of
    from simam_inject.dataflow.example import declared_size
    from simam_inject.pictures import photograph

    shapes = built.input_shapes or ((1, *declared_size(network_of(built.model))),)
    if built.takes_list or len(shapes) > 1 or len(shapes[0]) != 4 or shapes[0][1] not in (1, 3):
        raise ModelError(f"{built.name} does not take batches of images of one size")
    _, channels, height, width = shapes[0]
    letterbox = built.source == "ultralytics" and getattr(built.model, "task", "") != "classify"
    return photograph(path, (channels, height, width), normalization=built.normalization, letterbox=letterbox)


def batches_of(built: ZooModel, folder: Path) -> Iterable[Tensor]:
    """At most 256 images of a folder at the input size of the model, in batches of at most 16, read in each pass.

    They are shuffled: where folders are classes, each batch would otherwise contain one class only.
    """
    import torch
    from torch.utils.data import DataLoader

    paths = images_in(folder, limit=256)
    random.Random(0).shuffle(paths)
    return DataLoader(
        paths,  # type: ignore[arg-type]
        batch_size=16,
        collate_fn=lambda part: torch.cat([read_photograph(built, path).input for path in part]),
    )
