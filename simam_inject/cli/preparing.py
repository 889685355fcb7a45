"""What the commands do first: build the model, make its example inputs, compose the recipe, plan."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simam_inject.cli.options import EXPORTS, ModelOptions, Options
from simam_inject.cli.parsing import Size
from simam_inject.cli.program import Step
from simam_inject.errors import ModelError, NoMatchError, RecipeError
from simam_inject.zoo import ZooModel, build, load_weights
from simam_inject.zoo.names import find_library

if TYPE_CHECKING:
    from torch import Tensor

    from simam_inject import Plan
    from simam_inject.dataflow.records import Anatomy
    from simam_inject.pictures import Photograph
    from simam_inject.recipe import Recipe

WEIGHTS = (".safetensors", ".pth", ".ckpt", ".bin")
"""Suffixes of files that hold weights, not a model that can be built; `.pt` is looked into."""
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that is ready to be looked at or injected."""

    built: ZooModel
    inputs: Any
    """As `inject` takes them; None where the model declares its own size."""
    size: Size | None
    """`--input-size`, as given."""

    @property
    def inputs_code(self) -> str:
        """The example inputs as Python, where a call must pass them; empty where the model's own size was used."""
        if self.inputs is None:
            return ""
        code = _as_code(self.inputs[0] if len(self.inputs) == 1 else self.inputs)
        return "" if code == "torch.rand(1, 3, 224, 224)" else code

    def photograph(self, path: Path) -> Photograph:
        """A photograph as the model takes it.

        Raises:
            ModelError: The model does not take batches of images of one size.
            FileError: The file cannot be read as an image.
        """
        from simam_inject.adapters import network_of
        from simam_inject.dataflow.example import declared_size
        from simam_inject.pictures import photograph

        built = self.built
        shape = built.input_shapes[0][1:] if built.input_shapes else declared_size(network_of(built.model))
        size = self.size or shape
        if built.takes_list or len(built.input_shapes) > 1 or len(size) != 3 or size[0] not in (1, 3):
            raise ModelError(f"{built.name} does not take batches of images of one size")
        letterbox = built.source == "ultralytics" and getattr(built.model, "task", "") != "classify"
        return photograph(path, (size[0], size[1], size[2]), normalization=built.normalization, letterbox=letterbox)

    def survey(self) -> Anatomy:
        """All sites of the model."""
        from simam_inject.api import survey

        with _explained(self.size):
            return survey(self.built.model, example_inputs=self.inputs)


@dataclass(frozen=True, slots=True)
class Planned(Prepared):
    """A model with the plan of a recipe for it."""

    recipe: Recipe
    plan: Plan

    @property
    def has_effect(self) -> bool:
        """SimAM goes somewhere, or is there already where the recipe wants it."""
        return bool(self.plan.insertions) or self.plan.is_done

    @property
    def heading(self) -> str:
        """Names of model and recipe."""
        return f"{self.built.name}, {self.recipe.name or 'recipe'}"

    def check_effect(self) -> None:
        """Raise `NoMatchError` for a recipe without effect."""
        from simam_inject.api import no_effect

        if not self.has_effect:
            raise NoMatchError(no_effect(self.plan))

    def apply(self, strength: float) -> Any:
        """The model, with the plan carried out."""
        from simam_inject.warmup import set_strength

        self.plan.apply()
        if strength != 1.0:
            set_strength(self.built.model, strength)
        return self.built.model


def _as_code(value: Any) -> str:
    if not isinstance(value, list | tuple):
        return f"torch.rand({', '.join(map(str, value.shape))})"
    inner = ", ".join(map(_as_code, value))
    return f"[{inner}]" if isinstance(value, list) else f"({inner})"


def compose_recipe(options: Options) -> Recipe:
    """The rules of `--recipe`, then one for each selector; the first rule that takes a site owns it.

    Raises:
        RecipeError: No option says where, or one that does is not valid.
    """
    from simam_inject.recipe import Recipe, adjusted, load_recipe, selector

    base = load_recipe(options.recipe) if options.recipe else None
    if base is None and not options.selectors:
        raise RecipeError("no site given: use --after BLOCK, --before BLOCK.CHILD or --recipe NAME")
    data = base.to_dict() if base else {}
    names = [base.name] if base else []
    data["name"] = ", ".join(names + [f"{position} {text}" for position, text in options.selectors])
    data["rules"] = data.get("rules", []) + [selector(*place).to_dict() for place in options.selectors]
    return adjusted(Recipe.from_dict(data), options.exclude or (), options.e_lambda)


def check_model_name(name: str) -> None:
    """Raise for a file of weights in the place of the model, and for an unknown name, before torch is imported.

    Raises:
        ModelError: It is one.
    """
    path = Path(name)
    if path.suffix in EXPORTS:
        raise ModelError(f"{name} is an exported graph, which cannot be modified: give the model it was exported from")
    if path.suffix in WEIGHTS or (path.suffix == ".pt" and path.is_file() and not _is_yolo_checkpoint(path)):
        raise ModelError(
            f"{name} contains weights, not a model: give the model and add --weights {name}, "
            f"e.g. simam-inject resnet50 --weights {name} --after bottleneck"
        )
    find_library(name)


def _is_yolo_checkpoint(path: Path) -> bool:
    """Whether a file written by torch.save names classes of ultralytics; nothing is unpickled."""
    if not zipfile.is_zipfile(path):
        return True  # old format: let ultralytics say what is wrong
    with zipfile.ZipFile(path) as file:
        names = [name for name in file.namelist() if name.endswith("data.pkl")]
        return any(b"ultralytics" in file.read(name) for name in names)


def prepare(options: ModelOptions, step: Step, *, steps: int) -> Prepared:
    """Build the model that the options describe: the first of so many steps.

    Raises:
        ModelError: It cannot be built, or its weights do not fit.
    """
    check_model_name(options.model)
    step(f"building {options.model}", of=steps)
    if options.seed is not None:
        import torch

        torch.manual_seed(options.seed)
    built = build(options.model, pretrained=options.pretrained, num_classes=options.num_classes)
    if options.weights is not None:
        built = load_weights(built, options.weights)
    return Prepared(built, _example_inputs(built, options.input_size), options.input_size)


def _example_inputs(built: ZooModel, size: Size | None) -> tuple[Any, ...] | None:
    """Noise in [0, 1) for one forward with one image, of this size or of the one that the zoo knows.

    None where the model itself declares its size (timm, ultralytics) or the size is not known.
    """
    import torch

    if size is None and built.source != "torchvision":
        return None
    shapes = built.input_shapes
    if size is not None:
        shape = tuple(size) if built.takes_list else (1, *size)
        shapes = (shape,) * max(1, len(shapes))
    noise = torch.Generator().manual_seed(0)
    images = [torch.rand(shape, generator=noise) for shape in shapes]
    return (images,) if built.takes_list else tuple(images)


def make_plan(options: Options, step: Step, *, steps: int) -> Planned:
    """Build the model and plan the recipe for it: the first two of so many steps.

    Raises:
        RecipeError: The recipe is not valid.
        NoMatchError: A rule matches no site, or a glob of `--exclude` matches nothing.
        ModelError: The model cannot be built, or be run on the example.
    """
    check_model_name(options.model)
    recipe = compose_recipe(options)
    prepared = prepare(options, step, steps=steps)
    step("running it once and planning")
    from simam_inject.api import check_exclude, plan

    exclude = options.exclude or ()
    try:
        with _explained(options.input_size):
            found = plan(prepared.built.model, recipe, example_inputs=prepared.inputs)
    except NoMatchError:
        if exclude:  # a word about the option helps more than one about a rule that it is in
            check_exclude("--exclude", exclude, prepared.survey())
        raise
    check_exclude("--exclude", exclude, found.anatomy)
    return Planned(prepared.built, prepared.inputs, prepared.size, recipe, found)


@contextmanager
def _explained(size: Size | None) -> Iterator[None]:
    """Explain to a model that cannot run on `64x64` that this is channels x length, which only a 1-D network takes."""
    try:
        yield
    except ModelError as error:
        if size is None or len(size) != 2:
            raise
        raise ModelError(
            f"{error}\n--input-size {size} is channels x length; an image is channels x height x width: 3x{size}"
        ) from error


def images_in(folder: Path, limit: int) -> list[Path]:
    """The images in a folder and its subfolders, in alphabetical order; spread over all of them if there are more.

    Raises:
        ModelError: There is none.
    """
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
