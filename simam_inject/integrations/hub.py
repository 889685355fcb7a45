"""The Hugging Face Hub: a repository or a folder holds the weights, the recipe, and how the model is built.

For a model class of your own, a mixin in the place of `PyTorchModelHubMixin`:

    class Net(nn.Module, SimamHubMixin): ...
    net.save_pretrained("folder"); net.push_to_hub("me/net"); Net.from_pretrained("me/net")

For a model of timm, torchvision or ultralytics, three functions:

    push_to_hub(model, "me/net", architecture="timm:resnet50")      save_pretrained(model, "folder", ...)
    model = from_pretrained("me/net")

Weights are read by `simam_inject.persist.load`: what comes from the Hub is never unpickled, and no code of it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self, cast

from huggingface_hub import ModelHubMixin, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import HfHubHTTPError
from pydantic import BaseModel, Field, ValidationError
from torch import nn

from simam_inject.adapters import network_of
from simam_inject.api import injected
from simam_inject.errors import FileError, ModelError, describe_exception
from simam_inject.persist import load, save
from simam_inject.zoo import build

_DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token", "proxies", "resume_download")
"""What `ModelHubMixin` hands on beside the arguments of the class; the last two before huggingface_hub 1.0."""
_NAMES = "timm:NAME, torchvision:NAME or ultralytics:NAME"
_CARD = """---
{{ card_data }}
---

# {{ architecture }} with SimAM

`model.safetensors` holds the weights, and in its metadata the places of {{ sites }} SimAM modules. Any reader of
safetensors can load the weights; `simam_inject.integrations.hub.from_pretrained("{{ name }}")` restores SimAM too.
"""


class _Config(BaseModel, strict=True):
    """How a model is built. Names of libraries only, never of files or Python modules: it may be somebody else's."""

    architecture: Annotated[str, Field(pattern=r"^(timm:\w[\w.-]*|torchvision:\w+|ultralytics:\w[\w-]*)$")]
    num_classes: int | None = None


class SimamHubMixin(PyTorchModelHubMixin):
    """`PyTorchModelHubMixin` whose files carry the SimAM sites, and whose `from_pretrained` puts them back."""

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module), "SimamHubMixin is for subclasses of nn.Module"
        save(self, save_directory / SAFETENSORS_SINGLE_FILE)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **options: Any) -> Self:
        download = {name: options.pop(name) for name in _DOWNLOAD if name in options}
        model: Any = cls(**options)
        load(_fetch(model_id, SAFETENSORS_SINGLE_FILE, **download), model, strict=strict)
        return cast(Self, model.to(map_location).eval())


class _Parcel(ModelHubMixin, library_name="simam_inject", model_card_template=_CARD):
    """A model of a library on its way to a folder; `ModelHubMixin` does the rest."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def _save_pretrained(self, save_directory: Path) -> None:
        save(self.model, save_directory / SAFETENSORS_SINGLE_FILE)


def save_pretrained(model: nn.Module, folder: str | Path, *, architecture: str, num_classes: int | None = None) -> Path:
    """Write weights, SimAM sites, configuration and a model card into a folder. The model is not changed.

    Args:
        architecture: what builds the model: `timm:NAME`, `torchvision:NAME` or `ultralytics:NAME`.
        num_classes: what it was built with, if it was not the library's default.

    Returns:
        The folder.

    Raises:
        ModelError: the architecture is no such name.
        FileError: the model cannot be saved; see `simam_inject.persist.save`.
    """
    _Parcel(model).save_pretrained(folder, **_described(model, architecture, num_classes, Path(folder).name))
    return Path(folder)


def push_to_hub(
    model: nn.Module, repo_id: str, *, architecture: str, num_classes: int | None = None, **options: Any
) -> str:
    """Upload what `save_pretrained` writes, and return the address of the commit.

    Args:
        architecture, num_classes: as for `save_pretrained`.
        options: of `huggingface_hub.ModelHubMixin.push_to_hub`: `private`, `token`, `branch`, `commit_message`, ...
    """
    described = _described(model, architecture, num_classes, repo_id)
    return str(_Parcel(model).push_to_hub(repo_id, **described, **options))


def from_pretrained(
    name: str | Path, model: nn.Module | None = None, *, strict: bool = True, **options: Any
) -> nn.Module:
    """Build a model, put its SimAM in and load its weights; in eval mode.

    Args:
        name: a folder, or a repository of the Hub.
        model: to load into. None: built as the configuration says, by timm, torchvision or ultralytics.
        strict: as for `simam_inject.persist.load`.
        options: of `huggingface_hub.hf_hub_download`: `revision`, `token`, `cache_dir`, `local_files_only`, ...

    Raises:
        FileError: a file is missing or not valid; see `simam_inject.persist.load`.
        ModelError: the library cannot build the model.
    """
    weights = _fetch(str(name), SAFETENSORS_SINGLE_FILE, **options)
    if model is None:
        file = _fetch(str(name), CONFIG_NAME, **options)
        try:
            config = _Config.model_validate_json(file.read_bytes())
        except ValidationError as error:
            advice = "or build the model yourself and pass it: from_pretrained(name, model)"
            raise FileError(f"{file}: {_problem(error)}; {advice}") from None
        model = cast(nn.Module, build(config.architecture, num_classes=config.num_classes).model)
    load(weights, model, strict=strict)
    network_of(model).eval()  # a YOLO object's own `eval` would start a training
    return model


def _described(model: nn.Module, architecture: str, num_classes: int | None, name: str) -> dict[str, Any]:
    """Configuration and model card."""
    try:
        config = _Config(architecture=architecture, num_classes=num_classes)
    except ValidationError:
        raise ModelError(
            f"architecture is {architecture!r}; it must be {_NAMES} (for your own class, see SimamHubMixin)"
        ) from None
    card = {"architecture": architecture, "sites": len(injected(model)), "name": name}
    return {"config": config.model_dump(), "model_card_kwargs": card}


def _problem(error: ValidationError) -> str:
    """What is wrong with a configuration, in one sentence."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"it is not valid JSON ({first['msg']})"
    if first["loc"] == ("num_classes",):
        return f"its num_classes is {first['input']!r:.80}, not a number"
    found = first["input"] if first["loc"] and first["type"] != "missing" else None
    return f"its architecture is {found!r:.80}, not {_NAMES}"


def _fetch(name: str, filename: str, **options: Any) -> Path:
    """A file of a folder, or of a repository."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / filename).is_file():
            raise FileError(f"{folder} has no file {filename}")
        return folder / filename
    download: Callable[..., str] = hf_hub_download
    try:
        return Path(download(repo_id=name, filename=filename, **options))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise FileError(
            f"{name} is not a local folder, and {filename} cannot be downloaded from the Hub: "
            f"{describe_exception(error)}"
        ) from error
