"""The data goes one way: parsed with ast, compared with the table of docs/architecture.md.

recipe -> dataflow -> matching -> planning -> editing -> verification -> reporting; `api` alone knows all stages,
editing alone changes a model, the command line alone prints, and nothing patches Python or torch.
"""

import ast
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "simam_inject"
FILES = sorted(ROOT.rglob("*.py"))

ALLOWED = {
    "errors": (),
    "kinds": (),
    "nested": ("errors",),
    "source": (),
    "branches": ("kinds",),
    "modules": ("errors",),
    "attention": ("errors",),
    "recipe": ("errors", "kinds"),
    "dataflow": ("errors", "kinds", "modules", "nested", "source"),
    "matching": ("dataflow.anatomy", "errors", "kinds", "recipe"),
    "planning": ("branches", "dataflow", "errors", "matching", "modules", "nested", "recipe", "source"),
    "editing": ("attention", "branches", "errors", "modules", "nested", "planning.insertions", "source"),
    "verification": ("attention", "dataflow", "editing", "errors", "nested", "planning.insertions"),
    "adapters": ("editing", "errors", "modules"),
}
"""What each stage may import of the others. Whatever is not named here is built on top of `api`."""

FACADE = frozenset({"api"})
STAGES = frozenset(ALLOWED)


def stage_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path):
    """(line, dotted name below the package, is it at module level) of every import of the package's own modules."""
    tree = parse(path)
    top = {id(node) for statement in tree.body for node in ast.walk(statement) if _is_top(statement)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [node.module or ""]
            if node.module == "simam_inject":
                names = [f"simam_inject.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            yield node.lineno, name, id(node) in top


def _is_top(statement):
    return not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not (
        isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)
    )


def own_imports(path):
    for line, name, _ in imports_of(path):
        package, _, inner = name.partition(".")
        if package == "simam_inject":
            yield line, inner


def test_every_stage_of_the_table_exists():
    assert {stage_of(path) for path in FILES} >= STAGES | FACADE


@pytest.mark.parametrize(
    "path", [path for path in FILES if stage_of(path) in STAGES], ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_stage_imports_earlier_stages_only(path):
    stage = stage_of(path)
    allowed = (stage, *ALLOWED[stage])
    wrong = [
        f"line {line}: {name}"
        for line, name in own_imports(path)
        if not any(name == other or name.startswith(f"{other}.") for other in allowed)
    ]
    assert not wrong, f"{stage} may import {', '.join(allowed)}"


def test_the_documented_table_is_this_one():
    text = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", text, flags=re.MULTILINE)
    assert {stage: tuple(re.findall(r"`([\w.]+)`", imports)) for stage, imports in rows} == ALLOWED


def test_the_table_has_no_circle():
    order = list(ALLOWED)
    for stage, others in ALLOWED.items():
        for other in others:
            assert order.index(other.partition(".")[0]) < order.index(stage), (stage, other)


def test_records_know_no_torch():
    names = ("dataflow.anatomy", "matching.hits", "planning.insertions")
    records = [path for path in FILES if _dotted(path).removeprefix("simam_inject.") in names]
    assert len(records) == 3
    for path in records:
        assert not [name for _, name, _ in imports_of(path) if name.partition(".")[0] in ("torch", "numpy", "timm")], (
            path
        )


def test_no_file_imports_itself_through_others():
    files = {_dotted(path) for path in FILES}
    edges = {_dotted(path): set(_files_imported(path, files)) for path in FILES}
    done, open_now = set(), []

    def visit(path):
        assert path not in open_now, " -> ".join([*open_now[open_now.index(path) :], path])
        if path not in done:
            open_now.append(path)
            for target in sorted(edges[path] - {path}):
                visit(target)
            open_now.pop()
            done.add(path)

    for path in edges:
        visit(path)


def _dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _files_imported(path, files):
    """Files of the package that a file imports, at any level; `from room import file` is the file, not the room."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("simam_inject."):
            module = node.module.removeprefix("simam_inject.")
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield from [name for name in (inner, module) if name in files][:1]


PATCHED = ("nn.", "torch.", "builtins.", "fx.")


def test_nothing_patches_python_or_torch():
    found = []
    for path in FILES:
        for node in ast.walk(parse(path)):
            targets = node.targets if isinstance(node, ast.Assign) else []
            written = [ast.unparse(target) for target in targets if isinstance(target, ast.Attribute)]
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
                written.append(f"{ast.unparse(node.args[0])}.")
            found += [f"{path.name}:{node.lineno}" for name in written if name.startswith((*PATCHED, "nn.Module."))]
    assert not found


def test_nobody_imports_the_command_line():
    users = {stage_of(path) for path in FILES for _, name in own_imports(path) if name.partition(".")[0] == "cli"}
    assert users <= {"cli", "__main__"}


PRINTING = ("stdout.write", "stderr.write", "console.print", "rich.print")


def test_only_the_command_line_prints():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        if stage_of(path) != "cli"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and (ast.unparse(node.func) == "print" or ast.unparse(node.func).endswith(PRINTING))
    ]
    assert not found


def _changes_a_module(node):
    """Whether a statement gives an object another class or edits a table of children."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    if isinstance(node, ast.Delete):
        targets = node.targets
    for target in targets:
        written = ast.unparse(target)
        if written.endswith((".__class__", "._modules")) or "._modules[" in written:
            return True
        if isinstance(target, ast.Attribute) and target.attr == "forward":
            return True
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called.endswith(("._modules.update", "._modules.pop", "._modules.clear", ".add_module", ".register_module")):
            return True
        return called == "object.__setattr__" and len(node.args) > 1 and ast.unparse(node.args[1]) == "'__class__'"
    return False


READING = tuple(stage for stage in ALLOWED if stage not in ("editing", "attention", "errors"))
READING += ("api",)


@pytest.mark.parametrize("stage", READING)
def test_only_editing_changes_a_model(stage):
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        if stage_of(path) == stage
        for node in ast.walk(parse(path))
        if _changes_a_module(node)
    ]
    assert not found


def test_the_search_for_changes_finds_those_of_editing():
    found = {
        path.name for path in FILES if stage_of(path) == "editing" if any(map(_changes_a_module, ast.walk(parse(path))))
    }
    assert {"attach.py"} <= found


def test_code_is_made_in_one_place_and_nothing_is_evaluated():
    found = {
        (str(path.relative_to(ROOT)), ast.unparse(node.func))
        for path in FILES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("exec", "eval", "compile", "pickle.load", "pickle.loads", "__import__")
    }
    assert found == {
        ("editing/rewrite.py", "compile"),
        ("source.py", "compile"),
    }  # the second compares, and runs nothing


def test_every_error_of_the_package_is_an_inject_error():
    classes = [node for node in ast.walk(parse(ROOT / "errors.py")) if isinstance(node, ast.ClassDef)]
    bases = {node.name: [ast.unparse(base) for base in node.bases] for node in classes}
    assert bases.pop("InjectError") == ["Exception"]
    assert set(map(tuple, bases.values())) == {("InjectError",)}


HEAVY = ("ultralytics", "timm", "torchvision", "onnx", "onnxruntime", "onnxscript", "huggingface_hub")


def test_optional_libraries_are_imported_where_they_are_used():
    # Adapters are imported only when their library is met, the trainer of `compare` only to train.
    lazy = {path for path in FILES if stage_of(path) == "integrations"} | {ROOT / "compare" / "training.py"}
    found = [
        (str(path.relative_to(ROOT)), name)
        for path in FILES
        if path not in lazy
        for _, name, is_top in imports_of(path)
        if is_top and name.partition(".")[0] in HEAVY
    ]
    assert not found


def test_the_package_itself_imports_no_torch():
    program = (
        "import simam_inject, sys; sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'ultralytics')))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT.parent, check=False).returncode == 0


def test_the_public_names():
    import simam_inject

    assert simam_inject.__all__ == sorted(simam_inject.__all__)
    assert len(simam_inject.__all__) <= 17
    for name in simam_inject.__all__:
        assert getattr(simam_inject, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        simam_inject.nothing  # noqa: B018


def test_every_file_says_what_it_is_and_stays_readable():
    assert not [path for path in FILES if not ast.get_docstring(parse(path))]
    assert not [path for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 350]


def test_the_picture_of_the_packages_is_the_one_that_the_imports_give():
    """`python docs/draw_architecture.py` draws it anew."""
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT.parent / "docs" / "draw_architecture.py")
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    assert drawing.FILE.read_text(encoding="utf-8") == drawing.draw()
