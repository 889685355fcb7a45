"""The same surroundings for every test: no network, no settings of the user, one thread, one seed."""

import os
import random
import sys
import tempfile

import numpy as np
import pytest
import torch

# Read once, when ultralytics or huggingface_hub is first imported, which only tests do; child processes inherit them.
_CONFIG = tempfile.TemporaryDirectory(prefix="simam-inject-tests-")
os.environ.update(
    HF_HUB_OFFLINE="1",
    YOLO_AUTOINSTALL="false",
    YOLO_CONFIG_DIR=_CONFIG.name,
    YOLO_OFFLINE="true",
    YOLO_VERBOSE="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "ATEN_CPU_CAPABILITY" in os.environ:  # Inductor caches headers that fit one capability only
    folder = os.path.join(tempfile.gettempdir(), f"torchinductor-{os.environ['ATEN_CPU_CAPABILITY']}")  # noqa: PTH118
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty working directory of a user; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if spec and any(str(tmp_path) in str(place) for place in (spec.origin, spec.submodule_search_locations)):
            del sys.modules[name]


@pytest.fixture
def fresh_compiler():
    """Nothing that is compiled stays from test to test."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def eager_backend(fresh_compiler) -> str:
    """The backend of `torch.compile` that runs what was traced as it is."""
    return "eager"
