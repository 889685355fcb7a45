"""Models of the user's own: `FILE.py:FACTORY` and `PACKAGE.MODULE:FACTORY`.

A factory is a function, a class or a finished model. It runs with the working directory and, for a file, the file's
folder importable, as if it were a script there.
"""

from __future__ import annotations

import ast
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from simam_inject.errors import ModelError, describe_exception
from simam_inject.zoo.records import ZooModel


def build_factory(name: str, *, pretrained: bool = False, num_classes: int | None = None) -> ZooModel:
    """Build what a user's factory returns. `pretrained` and `num_classes` go to a factory that takes them.

    Raises:
        ModelError: The file, module or factory does not exist, raises, refuses an option or returns no model.
    """
    source, _, factory_name = name.rpartition(":")
    options: dict[str, Any] = {"pretrained": True} if pretrained else {}
    if num_classes is not None:
        options["num_classes"] = num_classes
    with _importable(Path.cwd(), *([Path(source).resolve().parent] if source.endswith(".py") else [])):
        module = _import_source(name, source)
        if not hasattr(module, factory_name):
            public = sorted(attribute for attribute in vars(module) if not attribute.startswith("_"))
            from simam_inject.recipe.wording import nearest

            near = nearest(factory_name, public)
            advice = f"Did you mean {', '.join(near)}?" if near else f"It has {', '.join(public) or 'no public names'}."
            raise ModelError(f"{name}: {source} has no {factory_name!r}. {advice}")
        model = factory = getattr(module, factory_name)
        if _is_model(factory) and options:
            raise ModelError(f"{name}: it is a finished model and takes no {' or '.join(options)}.")
        if callable(factory) and not _is_model(factory):
            try:
                model = factory(**options)
            except Exception as error:
                raise ModelError(f"{name}: the factory raised {_locate(error)}") from error
    if not _is_model(model):
        raise ModelError(f"{name}: it gives a {type(model).__qualname__}, not a torch.nn.Module or a YOLO object.")
    return ZooModel(name=name, model=model, source=source, note=f"weights as {factory_name} makes them")


def which_factory(name: str) -> ModelError:
    """The error for a file without a factory: what it defines, read from its source without running it."""
    try:
        tree = ast.parse(Path(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ModelError(f"no such file: {name}.")
    except (OSError, SyntaxError, ValueError) as error:
        return ModelError(f"{name} cannot be read as Python: {describe_exception(error)}.")
    names = [public for node in tree.body for public in _names_in(node) if not public.startswith("_")]
    if not names:
        return ModelError(f"{name} defines no function, class or model.")
    return ModelError(f"{name}: which model? It defines {', '.join(names)}. Write {name}:{names[-1]}.")


def _names_in(node: ast.stmt) -> list[str]:
    """Names of what may be a factory: a function, a class, or the result of a call."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


@contextmanager
def _importable(*folders: Path) -> Iterator[None]:
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def _import_source(name: str, source: str) -> ModuleType:
    is_file = source.endswith(".py")
    if is_file and not Path(source).is_file():
        raise ModelError(f"{name}: no such file: {source}.")
    try:
        return _import_file(Path(source).resolve()) if is_file else import_module(source)
    except Exception as error:
        raise ModelError(f"{name}: {source} cannot be imported: {_locate(error)}") from error


def _import_file(file: Path) -> ModuleType:
    """Import a file under its own name, so that classes it defines can be pickled, or beside a module of that name."""
    loaded = sys.modules.get(file.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return loaded
    module_name = file.stem if loaded is None else f"{file.stem}_from_{abs(hash(file)):x}"
    spec = spec_from_file_location(module_name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[module_name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _is_model(value: Any) -> bool:
    from torch import nn

    return isinstance(value, nn.Module) or (
        type(value).__module__.startswith("ultralytics.") and isinstance(getattr(value, "model", None), nn.Module)
    )


def _locate(error: BaseException) -> str:
    """The message of an exception in the user's code, with the file and line where it was raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{describe_exception(error)}{where}"
