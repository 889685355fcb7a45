"""What commands begin with: the recipe of the options, checks that need no torch, the model, its plan, images."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from simam_inject.cli.options import CompareOptions, ModelOptions, RecipeOptions
from simam_inject.cli.program import Step
from simam_inject.errors import FileError, ModelError, NoMatchError, RecipeError
from simam_inject.zoo import ZooModel, build, load_weights
from simam_inject.zoo.names import find_library

if TYPE_CHECKING:
    from torch import Tensor, nn

    from simam_inject.pictures import Photograph
    from simam_inject.planning.plan import Plan
    from simam_inject.recipe import Recipe
    from simam_inject.recipe.rule import Rule

_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def library_of(options: ModelOptions | CompareOptions) -> str:
    """The library of the model, without importing torch."""
    if options.pretrained and options.weights is not None:
        raise ModelError("--pretrained and --weights both load weights; give one of them")
    return find_library(options.model)


def selectors(options: RecipeOptions) -> list[str]:
    """What the options select with, in order: a recipe, then the places after and before."""
    after, before = (f"after {place}" for place in options.after), (f"before {place}" for place in options.before)
    return [*options.recipe, *after, *before]


def compose_recipe(options: RecipeOptions, own: Sequence[Recipe] = ()) -> Recipe:
    """The one recipe that the options describe together; if they name no site, those that the model has."""
    from simam_inject.recipe import Recipe, adjusted, load_recipe

    parts = [*map(load_recipe, selectors(options))] or own
    if not parts:
        raise RecipeError("no site given: use --after BLOCK, --before BLOCK.CHILD or --recipe NAME")
    changes = {"--exclude": options.exclude, "--e-lambda": options.e_lambda is not None}
    if parts is own and any(changes.values()):
        given = " and ".join(name for name, is_given in changes.items() if is_given)
        raise RecipeError(f"{given} cannot change the sites that a model has: give a recipe, and a model without SimAM")
    recipe = parts[0]
    if len(parts) > 1:
        rules: list[Rule] = []
        for index, part in enumerate(parts):  # places have the lambda of the first recipe
            rules += _rules_with_lambda(part) if 0 < index < len(options.recipe) else part.rules
        recipe = Recipe(name=", ".join(part.name for part in parts), e_lambda=recipe.e_lambda, rules=rules)
    return adjusted(recipe, options.exclude, options.e_lambda)


def prepare(options: ModelOptions, step: Step) -> ZooModel:
    """The model with its weights and the size of its input."""
    library_of(options)
    step("building the model")
    if options.seed is not None:
        import torch

        torch.manual_seed(options.seed)
    built = build(options.model, pretrained=options.pretrained, num_classes=options.num_classes)
    if options.weights is not None:
        built = load_weights(built, options.weights, new_head=options.num_classes is not None)
    return built if options.input_size is None else built.with_size(options.input_size)


def make_plan(options: RecipeOptions, step: Step, strength: float = 1.0) -> tuple[ZooModel, Plan]:
    """The model and the plan of its recipe.

    Raises:
        NoMatchError: the recipe has no effect.
    """
    file = Path(options.model.removeprefix("ultralytics:"))  # a model file may have a section `simam`
    may_have_sites = options.weights is not None or file.suffix == ".pt" or file.is_file() or not library_of(options)
    recipe = None if may_have_sites and not selectors(options) else compose_recipe(options)  # before it takes seconds
    built = prepare(options, step)
    from simam_inject import api
    from simam_inject.recipe import load_recipe

    step("planning")
    inputs = built.example_inputs
    try:
        if recipe is None:
            own = compose_recipe(options, _recipes_of(built))
            _attach_at_root(built.model)
            plan = api.plan_present(built.model, own, inputs)
        else:
            plan = api.make_plan(built.model, recipe, inputs, strength, exclude=("--exclude", options.exclude))
    except NoMatchError as error:
        if len(parts := selectors(options)) < 2 or "rules[" not in str(error):
            raise
        starts = accumulate((len(load_recipe(part).rules) for part in parts), initial=0)
        firsts = ", ".join(f"rules[{start}] is the first of {part}" for part, start in zip(parts, starts, strict=False))
        raise NoMatchError(f"{error}\nrules are numbered over all recipes: {firsts}") from None
    except ModelError as error:
        if options.input_size is None or len(options.input_size) != 2:
            raise
        one, two = options.input_size
        image = f"{one}x{two}x{two}" if one in (1, 3) else f"3x{one}x{two}"
        advice = f"--input-size {one}x{two} is channels x length; an image is channels x height x width: {image}"
        raise ModelError(f"{error}\n{advice}") from None
    if not plan.insertions and not plan.is_done:
        raise NoMatchError(plan.why_no_effect())
    return built, plan


def _recipes_of(built: ZooModel) -> list[Recipe]:
    """The recipes that were applied to the model, each rule with its lambda."""
    from simam_inject.adapters import network_of
    from simam_inject.editing.presence import presences_in
    from simam_inject.recipe import Recipe

    found = presences_in(network_of(built.model)).values()
    recipes = [Recipe.from_dict(table) for presence in found for table in presence.recipes]
    return [recipe.model_copy(update={"rules": _rules_with_lambda(recipe)}) for recipe in recipes]


def _rules_with_lambda(recipe: Recipe) -> tuple[Rule, ...]:
    return tuple(rule.model_copy(update={"e_lambda": rule.e_lambda or recipe.e_lambda}) for rule in recipe.rules)


def _attach_at_root(model: nn.Module) -> None:
    """Make sites of parts that were injected by themselves those of the whole, which can be verified then."""
    from simam_inject.adapters import network_of, update
    from simam_inject.editing.presence import presence_of
    from simam_inject.persist.record import Record

    network = network_of(model)
    if presence_of(network) is None:
        Record.of(network).attach_to(network)
        update(model)


def images_in(folder: Path, limit: int = 256) -> list[Path]:
    """The images of a folder and its subfolders in order of their names; of more than `limit`, evenly spaced ones."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES)
    if not found:
        raise FileError(f"no image found in {str(folder)!r}; supported formats: {', '.join(_IMAGES)}")
    return found if len(found) <= limit else [found[index * len(found) // limit] for index in range(limit)]


def read_image(built: ZooModel, file: Path) -> Photograph:
    """An image as the model takes it."""
    from simam_inject.adapters import network_of
    from simam_inject.dataflow.example import declared_size
    from simam_inject.pictures import photograph

    shape, *others = built.input_shapes or ((1, *declared_size(network_of(built.model))),)
    if built.takes_list or others or len(shape) != 4 or shape[1] not in (1, 3):
        raise ModelError(f"{built.name} does not take batches of images of one size")
    letterbox = built.source == "ultralytics" and built.model.task != "classify"
    return photograph(file, (shape[1], shape[2], shape[3]), normalization=built.normalization, letterbox=letterbox)


def batches_of(built: ZooModel, files: list[Path]) -> Iterable[Tensor]:
    """Batches of images in mixed order, since a folder may be sorted by class; read again in each pass."""
    import torch
    from torch.utils.data import DataLoader

    random.Random(0).shuffle(files)
    return DataLoader(
        files,  # type: ignore[arg-type]
        batch_size=16,
        collate_fn=lambda part: torch.cat([read_image(built, file).input for file in part]),
    )
