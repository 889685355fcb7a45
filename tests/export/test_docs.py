"""What docs/export.md and docs/training.md say is run as it is written."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.long
@pytest.mark.parametrize(("page", "files"), [("export", {"net.onnx", "any.pt2"}), ("training", {"trained.onnx"})])
def test_python_runs(page, files, project, capsys):
    text = (DOCS / f"{page}.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    exec(compile(code, f"{page}.md", "exec"), {"__name__": page})  # noqa: S102 (our own text)
    assert files <= {path.name for path in project.iterdir()}
    if page == "export":
        assert "8 sites live" in capsys.readouterr().out
