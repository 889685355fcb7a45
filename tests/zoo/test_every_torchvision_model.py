"""Every torchvision model is built, and runs on the input shapes its record says. Slow: `pytest -m zoo`."""

import pytest
import torch
from torchvision import models

from simam_inject.zoo import build

pytestmark = pytest.mark.zoo

DETECTORS = set(models.list_models(models.detection))
WITHOUT_META = {
    **dict.fromkeys(DETECTORS, "number of boxes depends on values"),
    **{f"raft_{size}": "reads a value while it checks its input" for size in ("large", "small")},
    **dict.fromkeys(models.list_models(include="regnet_*"), "computes its widths with tensors"),
}


@pytest.mark.parametrize("name", sorted(set(models.list_models()) - set(WITHOUT_META)))
def test_runs_on_its_own_input_shapes(name):
    with torch.device("meta"):
        built = build(f"torchvision:{name}")
        inputs = [torch.empty(shape) for shape in built.input_shapes]
        with torch.no_grad():
            assert built.model.eval()(*inputs) is not None


@pytest.mark.parametrize("name", sorted(WITHOUT_META))
def test_others_are_built(name):
    built = build(f"torchvision:{name}")
    assert built.takes_list == (name in DETECTORS)
    assert all(len(shape) == (3 if built.takes_list else 4) for shape in built.input_shapes)
