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

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

from huggingface_hub import ModelHubMixin, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from torch import nn

from simam_inject.adapters import network_of
from simam_inject.api import injected
from simam_inject.errors import FileError, ModelError
from simam_inject.persist import load, save
from simam_inject.zoo import build

_ARCHITECTURE = re.compile(r"(timm|torchvision|ultralytics):[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Names that a downloaded configuration may build: of libraries, never of files or Python modules."""
_DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token", "proxies", "resume_download")
"""What `ModelHubMixin` hands on beside the arguments of the class; the last two before huggingface_hub 1.0."""
_CARD = """---
{{ card_data }}
---

# {{ architecture }} with SimAM

`model.safetensors` holds the weights, and in its metadata the places of {{ sites }} SimAM modules. Any reader of
safetensors can load the weights; with `simam_inject` the attention comes back too:

```python
from simam_inject.integrations.hub import from_pretrained

model = from_pretrained("{{ name }}")
```
"""


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
        model = _build(_fetch(str(name), CONFIG_NAME, **options))
    load(weights, model, strict=strict)
    network_of(model).eval()  # a YOLO object's own `eval` would start a training
    return model


class _Parcel(ModelHubMixin, library_name="simam_inject", model_card_template=_CARD):
    """A model of a library on its way to a folder; `ModelHubMixin` does the rest."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def _save_pretrained(self, save_directory: Path) -> None:
        save(self.model, save_directory / SAFETENSORS_SINGLE_FILE)


def _described(model: nn.Module, architecture: str, num_classes: int | None, name: str) -> dict[str, Any]:
    """Configuration and model card."""
    if not _ARCHITECTURE.fullmatch(architecture):
        raise ModelError(
            f"architecture is {architecture!r}; it must be timm:NAME, torchvision:NAME or ultralytics:NAME, so "
            "that everybody can build it (for your own class, see SimamHubMixin)"
        )
    return {
        "config": {"architecture": architecture, "num_classes": num_classes},
        "model_card_kwargs": {"architecture": architecture, "sites": len(injected(model)), "name": name},
    }


def _build(config_file: Path) -> nn.Module:
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{config_file}: it is not valid JSON ({error})") from None
    found = config if isinstance(config, dict) else {}
    architecture, num_classes = found.get("architecture"), found.get("num_classes")
    if not isinstance(architecture, str) or not _ARCHITECTURE.fullmatch(architecture) or architecture.endswith(".pt"):
        raise FileError(
            f"{config_file}: its architecture is {architecture!r:.80}, not timm:NAME, torchvision:NAME or "
            "ultralytics:NAME; build the model yourself and pass it: from_pretrained(name, model)"
        )
    if num_classes is not None and type(num_classes) is not int:
        raise FileError(f"{config_file}: its num_classes is {num_classes!r:.80}, not a number")
    return cast(nn.Module, build(architecture, num_classes=num_classes).model)


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
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise FileError(
            f"{name} is not a local folder, and {filename} cannot be downloaded from the Hub: "
            f"{type(error).__name__}: {first}"
        ) from error
