"""What the commands do first: build the model, load its weights, make its example inputs, plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simam_inject.cli.options import ModelOptions, Options, Size
from simam_inject.errors import ModelError, NoMatchError

if TYPE_CHECKING:
    from simam_inject import Plan, Recipe
    from simam_inject.dataflow.records import Anatomy
    from simam_inject.zoo import ZooModel

WEIGHTS = (".safetensors", ".pth", ".ckpt", ".bin", ".onnx", ".pt2", ".torchscript")
"""Suffixes of files that hold weights or graphs, not a model that can be built; `.pt` is looked into."""


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
        if isinstance(self.inputs[0], list):
            images = ", ".join(_as_code(image) for image in self.inputs[0])
            return f"[{images}]"
        if len(self.inputs) == 1:
            return "" if tuple(self.inputs[0].shape) == (1, 3, 224, 224) else _as_code(self.inputs[0])
        return f"({', '.join(map(_as_code, self.inputs))})"


def _as_code(tensor: Any) -> str:
    return f"torch.rand({', '.join(map(str, tensor.shape))})"


def check_model_name(name: str) -> None:
    """Refuse a file of weights, or a file without a factory, in the place of the model, before torch is imported.

    Raises:
        ModelError: It is one.
    """
    path = Path(name)
    if path.suffix == ".py":
        from simam_inject.zoo.factories import which_factory

        raise which_factory(name)
    holds_weights = path.suffix in WEIGHTS or (
        path.suffix == ".pt" and path.is_file() and not _is_yolo_checkpoint(path)
    )
    if not holds_weights:
        return
    if path.suffix in (".onnx", ".pt2", ".torchscript"):
        raise ModelError(f"{name} is an exported graph, which cannot be modified: give the model it was exported from")
    raise ModelError(
        f"{name} contains weights, not a model: give the model and add --weights {name}, "
        f"e.g. simam-inject resnet50 --weights {name} --after bottleneck"
    )


def _is_yolo_checkpoint(path: Path) -> bool:
    """Whether a file written by torch.save names classes of ultralytics; nothing is unpickled."""
    import zipfile

    if not zipfile.is_zipfile(path):
        return True  # old format: let ultralytics say what is wrong
    with zipfile.ZipFile(path) as file:
        names = [name for name in file.namelist() if name.endswith("data.pkl")]
        return any(b"ultralytics" in file.read(name) for name in names)


def prepare(options: ModelOptions, step: Callable[[str], None]) -> Prepared:
    """Build the model that the options describe.

    Raises:
        ModelError: It cannot be built, or its weights do not fit.
    """
    check_model_name(options.model)
    step(f"building {options.model}")
    import torch

    from simam_inject.zoo import build, load_weights

    if options.seed is not None:
        torch.manual_seed(options.seed)
    built = build(options.model, pretrained=options.pretrained, num_classes=options.num_classes)
    if options.weights is not None:
        built = load_weights(built, options.weights)
    return Prepared(built, example_inputs(built, options.input_size), options.input_size)


def example_inputs(built: ZooModel, size: tuple[int, ...] | None = None) -> tuple[Any, ...] | None:
    """Positional inputs for one forward with one image, noise in [0, 1) from a generator of its own.

    Args:
        built: The model; its record has the number, the form and, without `size`, the shape of its inputs.
        size: Channels and spatial sizes that the user asks for.

    Returns:
        The inputs; None where the model itself declares its size (timm, ultralytics) or the size is not known.
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


def make_plan(prepared: Prepared, recipe: Recipe, options: Options) -> Plan:
    """The plan for the model.

    Raises:
        NoMatchError: A rule matches no site, or a glob of `--exclude` matches nothing.
        ModelError: The model cannot be run on the example.
    """
    from simam_inject.api import plan, survey

    with sized(options.input_size):
        try:
            found = plan(prepared.built.model, recipe, example_inputs=prepared.inputs)
        except NoMatchError:
            if options.exclude:
                _check_exclude(options, survey(prepared.built.model, example_inputs=prepared.inputs))
            raise
    if options.exclude:
        _check_exclude(options, found.anatomy)
    return found


def _check_exclude(options: Options, anatomy: Anatomy) -> None:
    """Refuse an `--exclude` that leaves nothing out because it matches nothing, whatever the rules are."""
    from simam_inject.matching import every_path, explain_idle
    from simam_inject.recipe.names import Glob

    globs = [Glob(text) for text in options.exclude or ()]
    if message := explain_idle("--exclude", globs, every_path(anatomy)):
        raise NoMatchError(message)


@contextmanager
def sized(size: Size | None) -> Iterator[None]:
    """Explain to a model that cannot run on `64x64` that this is channels x length, which only a 1-D network takes."""
    try:
        yield
    except ModelError as error:
        if size is None or len(size) != 2:
            raise
        raise ModelError(
            f"{error}\n--input-size {size} is channels x length; an image is channels x height x width: 3x{size}"
        ) from error
