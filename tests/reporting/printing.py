"""What rich shows, as lines."""

import io

from rich.console import Console


def printed(*parts, width=100) -> list[str]:
    """The lines that are not empty."""
    console = Console(file=io.StringIO(), width=width)
    for part in parts:
        console.print(part)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]
