"""Models of the user's own: `FILE.py:FACTORY` and `PACKAGE.MODULE:FACTORY`.

A factory is a function, a class or a finished model. It runs with the working directory and, for a file, the file's
folder importable, as if it were a script there.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from simam_inject.errors import ModelError, a_type, describe_exception, nearest
from simam_inject.zoo.model import ZooModel


def build_factory(name: str, options: dict[str, Any]) -> ZooModel:
    """Build what a user's factory returns for these keyword arguments.

    Raises:
        ModelError: The file, module or factory does not exist, it raises an error, or it returns something else.
    """
    source, _, factory_name = name.rpartition(":")
    file = Path(source).resolve() if source.endswith(".py") else None
    if file is not None and not file.is_file():
        raise ModelError(f"{name}: no such file: {source}")
    with _importable(Path.cwd(), *([file.parent] if file else [])):
        try:
            module = _import_file(file) if file else importlib.import_module(source)
        except (Exception, SystemExit) as error:
            raise ModelError(f"{name}: {source} cannot be imported: {_locate(error)}") from error
        if not hasattr(module, factory_name):
            raise ModelError(f"{name}: {source} has no {factory_name!r}. {_suggest(factory_name, module)}")
        model = _call(name, getattr(module, factory_name), options)
    return ZooModel(name, model, source, f"weights as {factory_name} makes them")


def _call(name: str, factory: Any, options: dict[str, Any]) -> Any:
    """The model that a factory returns, or that it is."""
    from torch import nn

    model = factory
    if isinstance(factory, nn.Module) and options:
        raise ModelError(f"{name}: it is a finished model and takes no {' or '.join(options)}")
    if callable(factory) and not isinstance(factory, nn.Module):
        try:
            model = factory(**options)
        except (Exception, SystemExit) as error:
            given = f"; it was called with {', '.join(options)}" if options else ""
            raise ModelError(f"{name}: the factory raised {_locate(error)}{given}") from error
    if not isinstance(model, nn.Module):  # a `YOLO` object is one as well
        raise ModelError(f"{name}: it gives {a_type(model)}, not a torch.nn.Module or a YOLO object")
    return model


def _locate(error: BaseException) -> str:
    """The message of an exception in the user's code, with the file and line where it was raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{describe_exception(error)}{where}"


def _suggest(factory_name: str, module: ModuleType) -> str:
    names = sorted(name for name, value in vars(module).items() if name[0] != "_" and not isinstance(value, ModuleType))
    near = nearest(factory_name, names)
    return f"Did you mean {', '.join(near)}?" if near else f"It has {', '.join(names) or 'no public names'}"


@contextmanager
def _importable(*folders: Path) -> Iterator[None]:
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def _import_file(file: Path) -> ModuleType:
    """Import a file under its own name, so that classes it defines can be pickled, or beside a module of that name."""
    loaded = sys.modules.get(file.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return loaded
    name = file.stem if loaded is None else f"{file.stem}_from_{abs(hash(file)):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def which_factory(name: str) -> ModelError:
    """The error for a file without a factory: what it defines, read from its source without running it."""
    try:
        tree = ast.parse(Path(name).read_bytes())
    except FileNotFoundError:
        return ModelError(f"no such file: {name}; a model of your own is FILE.py:FACTORY")
    except (OSError, SyntaxError, ValueError) as error:
        return ModelError(f"{name} cannot be read as Python: {describe_exception(error)}")
    names = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    names = [name for name in names if not name.startswith("_")]
    if not names:
        return ModelError(f"{name} defines no function, class or model")
    return ModelError(f"{name} defines {', '.join(names)}: name one of them, as in {name}:{names[-1]}")
