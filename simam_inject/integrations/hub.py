"""The Hugging Face Hub: a repository or a folder with the weights, the SimAM sites, and how the model is built.

For a model class of your own, a mixin instead of `PyTorchModelHubMixin`:

    class Net(nn.Module, SimamHubMixin): ...
    net.save_pretrained("folder"); net.push_to_hub("me/net"); Net.from_pretrained("me/net")

For a model of timm, torchvision or ultralytics, three functions:

    push_to_hub(model, "me/net", architecture="timm:resnet50")      save_pretrained(model, "folder", ...)
    model = from_pretrained("me/net")

Weights are read by `simam_inject.persist.load`: what comes from the Hub is never unpickled, and no code of it runs.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self, cast

from huggingface_hub import HfApi, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from pydantic import AfterValidator, BaseModel, ValidationError
from torch import nn

from simam_inject.adapters import network_of
from simam_inject.api import injected
from simam_inject.dataflow.surroundings import same_random_states
from simam_inject.editing.serialization import checked, first_problem
from simam_inject.errors import FileError, ModelError, describe_exception
from simam_inject.modules import unwrapped
from simam_inject.persist import load, save
from simam_inject.persist.files import state_of
from simam_inject.persist.fitting import differences, listed
from simam_inject.persist.record import Record
from simam_inject.zoo import build

_DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token", "proxies", "resume_download")
"""What `PyTorchModelHubMixin` passes beside the arguments of the class; the last two before huggingface_hub 1.0."""
_NAME = re.compile(r"timm:\w[\w.-]*|torchvision:\w+|ultralytics:\w[\w-]*")
_CARD = """---
library_name: simam_inject
---

# {architecture} with SimAM

`model.safetensors` contains the weights, and in its metadata the places of {sites} SimAM modules. Any reader of
safetensors can load the weights; `simam_inject.integrations.hub.from_pretrained` restores SimAM too.
"""


def _of_library(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"found {name!r:.80}; expected timm:NAME, torchvision:NAME or ultralytics:NAME")
    return name


class _Config(BaseModel, strict=True):
    """How a model is built: by a library. A downloaded file must not name files or Python modules, which run code."""

    architecture: Annotated[str, AfterValidator(_of_library)]
    num_classes: int | None = None


class SimamHubMixin(PyTorchModelHubMixin):
    """`PyTorchModelHubMixin` whose files contain the SimAM sites, and whose `from_pretrained` restores them."""

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module), "SimamHubMixin is for subclasses of nn.Module"
        save(self, save_directory / SAFETENSORS_SINGLE_FILE)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **options: Any) -> Self:
        download = {name: options.pop(name) for name in _DOWNLOAD if name in options}
        model: Any = cls(**options)
        return cast(Self, from_pretrained(model_id, model, strict=strict, **download).to(map_location))


def save_pretrained(model: nn.Module, folder: str | Path, *, architecture: str, num_classes: int | None = None) -> Path:
    """Write weights, SimAM sites, configuration and a model card into a folder. The model is not changed.

    Args:
        architecture: what builds the model: `timm:NAME`, `torchvision:NAME` or `ultralytics:NAME`, with no option but
            `num_classes`. Others (`act_layer`, ...) are not recorded, and would be lost.
        num_classes: what it was built with, if it was not the library's default; 0 is timm's network without a head.

    Returns:
        The folder.

    Raises:
        ModelError: the architecture is not such a name, or `from_pretrained` could not build this model from it.
        FileError: the folder cannot be created, or the model not saved; see `simam_inject.persist.save`.
    """
    try:
        config = _Config(architecture=architecture, num_classes=num_classes)
    except ValidationError as error:
        raise ModelError(f"{first_problem(error)} (for your own class, see SimamHubMixin)") from None
    network = network_of(unwrapped(model))
    Record.of(network)  # raises for another attention than SimAM
    with same_random_states():  # raises for a variant that was registered in this process: another one cannot build it
        stock = build(architecture, num_classes=num_classes).model
    if any((found := differences(state_of(network), state_of(network_of(stock)))).values()):
        wrong = f"{architecture} is built with other tensors than those of the model (num_classes={num_classes})"
        advice = "if the model has another number of classes than the default, give it as num_classes=N"
        raise ModelError(f"{wrong}; {advice}:\n{listed(found)}")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"the folder {folder} cannot be created: {error.strerror}") from None
    save(model, folder / SAFETENSORS_SINGLE_FILE)
    (folder / CONFIG_NAME).write_text(config.model_dump_json(indent=2), encoding="utf-8")
    card = _CARD.format(architecture=architecture, sites=len(injected(model)))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    architecture: str,
    num_classes: int | None = None,
    private: bool | None = None,
    token: str | None = None,
    **options: Any,
) -> str:
    """Upload what `save_pretrained` writes, and return the address of the commit.

    Args:
        architecture, num_classes: as for `save_pretrained`.
        private, token: of the repository, which is created if there is none.
        options: of `huggingface_hub.HfApi.upload_folder`: `commit_message`, `revision`, `create_pr`, ...
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, architecture=architecture, num_classes=num_classes)
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repository, folder_path=folder, **options))


def from_pretrained(
    name: str | Path, model: nn.Module | None = None, *, strict: bool = True, **options: Any
) -> nn.Module:
    """Build a model, add its SimAM and load its weights. The model is in eval mode.

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
        text = file.read_text(encoding="utf-8", errors="replace")
        config = checked(_Config, text, f"{file} (needed unless a model is passed: from_pretrained(name, model))")
        model = cast(nn.Module, build(config.architecture, num_classes=config.num_classes).model)
    load(weights, model, strict=strict)
    network_of(model).eval()  # a YOLO object's own `eval` would start a training
    return model


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
    except (OSError, ValueError) as error:  # those of the Hub are OSErrors
        problem = f"and {filename} cannot be downloaded from the Hub: {describe_exception(error)}"
        raise FileError(f"{name} is not a local folder, {problem}") from error
