"""All tables of one device, quick, into a folder.

    python -m benchmarks all [--device cuda] [--output benchmarks/results]

Writes micro, train, additive and model as Markdown and JSON. On a GPU all maps are timed, on a CPU a few.
"""

import argparse
from pathlib import Path

from benchmarks import additive, micro, model, train

COMMANDS = {"micro": micro.main, "train": train.main, "additive": additive.main, "model": model.main}
"""In this order: what matters most comes first, should time run out."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks all", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, run in COMMANDS.items():
        where = options.output / f"{name}-{options.device.replace(':', '')}"
        files = ["--json", f"{where}.json", "--markdown", f"{where}.md"]
        quick = ["--quick"] if options.device == "cpu" or name == "model" else []
        run(["--device", options.device, *quick, *files])
    return 0
