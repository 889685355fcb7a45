"""The Python of docs/warm-start.md and docs/maps.md runs, each page in one go."""

import re
import warnings
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["warm-start.md", "maps.md"])
def test_code_runs(page, capsys):
    if page == "maps.md":
        pytest.importorskip("pytorch_grad_cam")
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec("\n".join(blocks), names)  # noqa: S102 - our own pages
    if page == "warm-start.md":
        assert "layer1.0.conv2" in capsys.readouterr().out
        assert names["model"].layer1[0].conv2.simam.strength == 0.0
        assert names["model"].layer1[0].conv2.simam.gain > 1.1
        assert names["ramp"].step() == 0.001
    else:
        assert names["heat"].shape == (224, 224)
        assert names["maps"]["layer4.1.conv2"].shape == (1, 1, 7, 7)
