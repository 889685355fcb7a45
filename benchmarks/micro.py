"""The operator's forward on single maps.

    python -m benchmarks micro [--device cuda] [--quick] [--no-compile] [--json FILE] [--markdown FILE]

`simam / clone` is the distance to the limit on a GPU, where the floor is 1. On a CPU the exponential is the limit.
"""

from benchmarks.operator_table import run
from benchmarks.options import parse, publish


def main(argv: list[str]) -> int:
    options = parse("micro", __doc__, argv)
    table, notes, rows = run(options, is_training=False)
    publish(options, "SimAM, forward", table, notes, rows)
    return 0
