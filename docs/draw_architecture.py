"""Draw docs/images/architecture.svg from the imports of the package: `python docs/draw_architecture.py`.

Each box is a package or a file at the top level. A line leads from it down to what it imports at the start of a file;
what it reaches through another box as well has no line of its own. tests/test_architecture.py compares the file.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, FILE = ROOT / "simam_inject", ROOT / "docs" / "images" / "architecture.svg"
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 104, 30, 18, 46, 20
STYLE = """
svg { background: #ffffff; font: 13px ui-sans-serif, system-ui, sans-serif; }
rect { fill: #eef3fb; stroke: #3b5b92; rx: 5; }
path { fill: none; stroke: #8a97ad; stroke-width: 1.2; }
text { fill: #1d2a44; text-anchor: middle; dominant-baseline: central; }
"""


def imports() -> dict[str, set[str]]:
    """For each part of the package the parts that it imports at the start of its files."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part.startswith("__"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree) if part == "cli" else tree.body:  # a command imports what it needs when it runs
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("simam_inject"):
                dotted = (node.module or "").split(".")[1:2] or [alias.name for alias in node.names]
                found.setdefault(part, set()).update(name for name in dotted if name != part)
        found.setdefault(part, set())
    return {part: {name for name in names if name in found} for part, names in found.items()}


def levels(needs: dict[str, set[str]]) -> dict[str, int]:
    """Height of each part: one more than the highest that it needs."""
    heights: dict[str, int] = {}

    def height(part: str) -> int:
        if part not in heights:
            heights[part] = 1 + max((height(other) for other in needs[part]), default=-1)
        return heights[part]

    for part in needs:
        height(part)
    return heights


def direct(needs: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that no other import implies."""

    def reached(part: str) -> set[str]:
        return needs[part].union(*(reached(other) for other in needs[part]))

    return [
        (part, other)
        for part, others in sorted(needs.items())
        for other in sorted(others)
        if not any(other in reached(third) for third in others - {other})
    ]


def draw() -> str:
    """The picture as SVG text."""
    needs = imports()
    heights = levels(needs)
    rows = [[part for part in sorted(needs) if heights[part] == level] for level in range(max(heights.values()) + 1)]
    widest = max(map(len, rows))
    width = 2 * MARGIN + widest * (WIDTH + GAP_X) - GAP_X
    height = 2 * MARGIN + len(rows) * (HEIGHT + GAP_Y) - GAP_Y
    place: dict[str, tuple[float, float]] = {}
    for level, row in enumerate(rows):
        # Each box stands above the middle of what it imports, as far as its neighbours allow.
        row.sort(key=lambda part: sum(place[other][0] for other in needs[part]) / max(len(needs[part]), 1))
        left = (width - len(row) * (WIDTH + GAP_X) + GAP_X) / 2
        for index, part in enumerate(row):
            place[part] = (
                left + index * (WIDTH + GAP_X) + WIDTH / 2,
                height - MARGIN - HEIGHT / 2 - level * (HEIGHT + GAP_Y),
            )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<style>{STYLE}</style>",
    ]
    lines.append("<title>Packages of simam_inject, above what they import</title>")
    for part, other in direct(needs):
        (x, y), (u, v) = place[part], place[other]
        bend, half = (v - y) / 2, HEIGHT / 2
        curve = f"M{x:.0f} {y + half:.0f} C{x:.0f} {y + bend:.0f} {u:.0f} {v - bend:.0f} {u:.0f} {v - half:.0f}"
        lines.append(f'<path d="{curve}"/>')
    for part, (x, y) in sorted(place.items()):
        lines.append(f'<rect x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}"/>')
        lines.append(f'<text x="{x:.0f}" y="{y:.0f}">{part}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    FILE.write_text(draw(), encoding="utf-8")
