"""The operator's forward and backward on single maps, and the bytes it keeps in between.

    python -m benchmarks train [--device cuda] [--quick] [--no-compile] [--json FILE] [--markdown FILE]

`simam / clone` is the distance to the limit on a GPU, where the floor is 2.5.
"""

from benchmarks.operator_table import run
from benchmarks.options import parse, publish


def main(argv: list[str]) -> int:
    options = parse("train", __doc__, argv)
    table, notes, rows = run(options, is_training=True)
    publish(options, "SimAM, forward and backward", table, notes, rows)
    return 0
