"""Names of models, and suggestions for a wrong one. Read from the libraries' source: importing them takes seconds."""

import re
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from simam_inject.errors import ModelError, nearest
from simam_inject.zoo.factories import which_factory

WAYS_TO_NAME = (
    "NAME, torchvision:NAME, timm:NAME, ultralytics:NAME, FILE.py:FACTORY, PACKAGE.MODULE:FACTORY, FILE.pt or FILE.yaml"
)
"""How a model may be named, for error messages."""
PEERS = ("se", "eca", "cbam", "gc")
"""Other attention modules than SimAM, as timm names them."""
EXPORTS = (".onnx", ".pt2", ".torchscript")
"""Suffixes of the files that `export` writes."""
_WEIGHTS = (".safetensors", ".pth", ".ckpt", ".bin")
_YOLO = re.compile(rb"(c|\x8c.)ultralytics\.", re.DOTALL)
"""A class of ultralytics in a pickle; a text that mentions the package has another byte before it."""
_PUBLISHED = re.compile(r"yolo|rtdetr|sam|mobile|fastsam", re.IGNORECASE)
"""How the names of all checkpoints that ultralytics publishes begin."""
_REGISTERED = re.compile(r'^@register_model(?:\((?:name="(\w+)")?\))?\n(?:(?!def ).+\n)*def (\w+)', re.MULTILINE)


def find_library(name: str) -> str:
    """The library that a name means: `torchvision`, `timm`, `ultralytics`, or "" for a factory.

    Raises:
        ModelError: No library has the name, or it is that of a file with weights or with an exported graph.
    """
    prefix, colon, bare = name.rpartition(":")
    path = Path(name)
    if not name.strip():
        raise ModelError(f"the model has no name. A model is named {WAYS_TO_NAME}")
    if path.suffix in _WEIGHTS or (path.suffix == ".pt" and path.is_file() and holds_yolo(path) is False):
        raise ModelError(
            f"{name} contains weights, not a model, or a pickled module, which is not loaded: give the model and add "
            f"--weights {name}"
        )
    if path.suffix in (*EXPORTS, ".engine"):
        raise ModelError(f"{name} is an exported graph, which cannot be modified: give the model it was exported from")
    if colon and prefix not in ("torchvision", "timm", "ultralytics"):
        return ""
    if name.endswith(".py"):
        raise which_factory(name)
    if prefix in ("", "torchvision") and bare in list_registered("torchvision"):
        return "torchvision"
    if prefix in ("", "timm") and bare.partition(".")[0] in list_registered("timm"):
        return "timm"
    if prefix in ("", "ultralytics"):
        _check_file(bare)
    # of a file, and where ultralytics is not installed, building it says what is wrong
    looks_right = bare.endswith((".pt", ".yaml", ".yml")) or bare in list_ultralytics()
    missing = not list_ultralytics() and (prefix or re.match(r"yolo(e-)?v?\d|rtdetr-", bare))
    if prefix in ("", "ultralytics") and (looks_right or missing):
        return "ultralytics"
    raise unknown_model(bare, prefix)


def _check_file(name: str) -> None:
    """Raise for the name of a `.pt` or `.yaml` file that neither exists nor is one of ultralytics' own."""
    stem, dot, suffix = name.rpartition(".")
    if dot and suffix in ("pt", "yaml", "yml") and list_ultralytics() and not Path(name).is_file():
        if suffix == "pt":
            if not _PUBLISHED.match(Path(name).name):
                raise ModelError(f"no such file: {name}, and ultralytics publishes no checkpoint of that name")
        elif stem not in list_ultralytics():
            is_here = Path(name).parent == Path()
            raise ModelError(f"no such file: {name}" + f"; {unknown_model(stem, 'ultralytics')}" * is_here)


def holds_yolo(path: Path) -> bool | None:
    """Whether a file of `torch.save` contains objects of ultralytics; None where only loading it can tell."""
    try:
        with zipfile.ZipFile(path) as opened:
            pickles = [opened.read(name) for name in opened.namelist() if name.endswith("data.pkl")]
    except (OSError, zipfile.BadZipFile):
        return None
    return any(_YOLO.search(data) for data in pickles) if pickles else None


@cache
def list_ultralytics() -> tuple[str, ...]:
    """Names of the models ultralytics packages a YAML for, in every scale; empty if it is not installed."""
    names: dict[str, None] = {}
    for file in _files("ultralytics", "cfg/models/**/*.yaml"):
        scales = re.findall(r"^  ([a-z]): \[", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        # `yolov8-seg`, `n` -> `yolov8n-seg`: where ultralytics looks for the scale
        scaled = (re.sub(r"^(yolo(?:e-)?v?\d+)", rf"\g<1>{scale}", file.stem) for scale in scales)
        names |= dict.fromkeys([file.stem, *scaled])
    return tuple(names)


@cache
def list_registered(package: str) -> tuple[str, ...]:
    """Names of the models of torchvision or timm, without tags, from its `register_model` decorators."""
    texts = (file.read_text(encoding="utf-8") for file in _files(package, "models/**/*.py"))
    return tuple(sorted(name or function for text in texts for name, function in _REGISTERED.findall(text)))


def _files(package: str, pattern: str) -> list[Path]:
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    return sorted(file for folder in folders for file in Path(folder).glob(pattern))


def unknown_model(name: str, library: str = "") -> ModelError:
    """The error for a name that a library does not have (without `library`, none of them), with the nearest names."""
    names = {package: list_registered(package) for package in ("torchvision", "timm")}
    names["ultralytics"] = list_ultralytics()
    near = nearest(name, names[library] if library else set().union(*names.values()), count=5)
    found = f"{library} has no model {name!r}" if library else f"no library has a model {name!r}"
    advice = f" Did you mean {', '.join(near)}?" if near else ""
    return ModelError(f"{found}.{advice} A model is named {WAYS_TO_NAME}")
