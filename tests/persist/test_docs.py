"""What docs/files.md says is run as it is written."""

import re
import warnings
from pathlib import Path

import pytest

from simam_inject.persist import LostRecipeWarning

TEXT = (Path(__file__).parents[2] / "docs" / "files.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("project")
def test_python_runs(capsys):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL))
    names = {"__name__": "docs_files"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(code, "files.md", "exec"), names)  # noqa: S102 (our own text)
    assert [warning.category for warning in caught if warning.category is LostRecipeWarning] == [LostRecipeWarning]
    assert len(names["injected"](names["again"])) == 8
    assert "resnet18.pth.tar: it cannot be read: No such file or directory" in capsys.readouterr().out
