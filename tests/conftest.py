"""The same surroundings for every test: no network, no settings of the user, one thread, one seed."""

import os
import random
import tempfile

# Before anything imports ultralytics, which reads them once; child processes inherit them.
_CONFIG = tempfile.TemporaryDirectory(prefix="simam-inject-tests-")
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_VERBOSE"] = "false"
os.environ["YOLO_CONFIG_DIR"] = _CONFIG.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
