"""The Python on the pages of docs/ runs as it is written, each page in one go, and gives what the page says."""

import re
import warnings
from pathlib import Path

import pytest

from simam_inject import injected
from simam_inject.persist import LostRecipeWarning
from simam_inject.recipe import load_recipe

DOCS = Path(__file__).parents[1] / "docs"


def run(page, allowed=()):
    """The names that the page defines; warnings of other categories than the allowed one are errors."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    names = {"__name__": page}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for category in allowed:
            warnings.simplefilter("default", category)
        exec(compile(code, f"{page}.md", "exec"), names)  # noqa: S102 (our own text)
    return names


@pytest.fixture(autouse=True)
def _folder(project):
    """Pages write into the working directory."""


def test_warm_start(capsys):
    names = run("warm-start")
    attention = names["model"].layer1[0].conv2.simam
    assert "layer1.0.conv2" in capsys.readouterr().out
    assert (attention.strength, names["ramp"].step()) == (0.0, 0.001)
    assert attention.gain > 1.1


def test_maps():
    pytest.importorskip("pytorch_grad_cam")
    names = run("maps")
    assert names["heat"].shape == (224, 224)
    assert names["maps"]["layer4.1.conv2"].shape == (1, 1, 7, 7)


def test_files(capsys):
    with pytest.warns(LostRecipeWarning) as caught:
        names = run("files", [Warning])
    assert len([warning for warning in caught if warning.category is LostRecipeWarning]) == 1
    assert len(injected(names["again"])) == 8
    assert "resnet18.pth.tar: it cannot be read" in capsys.readouterr().out


def test_recipes(project):
    run("recipes")
    assert load_recipe(project / "simam.yaml").rules


@pytest.mark.long
@pytest.mark.parametrize(("page", "files"), [("export", {"net.onnx", "any.pt2"}), ("training", {"trained.onnx"})])
def test_export_and_training(page, files, project, capsys):
    run(page, [Warning])
    assert files <= {path.name for path in project.iterdir()}
    if page == "export":
        assert "8 live sites" in capsys.readouterr().out
