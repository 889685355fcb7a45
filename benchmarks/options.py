"""Options that the commands share, and where their results go."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment


def parse(command: str, about: str | None, argv: Sequence[str]) -> argparse.Namespace:
    """Read the options; `device` is a `torch.device` that exists."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {command}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--quick", action="store_true", help="a few cases only")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes most of the time"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args(argv)
    options.device = torch.device(options.device)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu measures the processor")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return options


def tabulate(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def publish(options: argparse.Namespace, title: str, table: Sequence[str], notes: Sequence[str], rows: Any) -> None:
    """Print the Markdown table with its environment, and write the files that were asked for."""
    block = environment(options.device)
    text = "\n".join(
        [f"## {title}", "", *table, "", *notes, "", "; ".join(f"{key}: {value}" for key, value in block.items()), ""]
    )
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")
    if options.json is not None:
        figures = {"title": title, "environment": block, "rows": rows}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
