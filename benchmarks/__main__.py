"""The dispatcher: `python -m benchmarks COMMAND [options]`. A new command is one line of COMMANDS."""

import importlib
import sys

from benchmarks.process import rerun_pooled

COMMANDS = {
    # name: (module with a `main(argv) -> int`, whether it times the operator and so needs pooled memory, what it does)
    "micro": ("benchmarks.micro", True, "the operator, forward"),
    "train": ("benchmarks.train", True, "the operator, forward and backward, and the bytes it keeps"),
    "additive": (
        "benchmarks.additive",
        True,
        "16 attentions on the activations of a ResNet-50, against the whole network",
    ),
    "model": ("benchmarks.model", True, "a whole ResNet-50, plain, with SimAM, with other attentions"),
    "yolo": ("benchmarks.yolo", True, "a training step of YOLOv8n with AMP, against SimAM written by hand"),
    "all": (
        "benchmarks.everything",
        True,
        "the above, into benchmarks/results; on a GPU the kernels' tests first",
    ),
    "tiles": ("benchmarks.tiles", False, "on a GPU, which tile each kernel should use"),
    "inject": ("benchmarks.inject", False, "the tool itself: plan, insert, verify, start-up"),
    "growth": ("benchmarks.growth", False, "the tool itself on chains of 50 to 800 blocks"),
    "tax": ("benchmarks.tax", True, "injected networks against the same networks written by hand"),
    "switch": ("benchmarks.switch", True, "whether eager mode on a CPU should keep a compiled kernel ready"),
    "peers": ("benchmarks.peers", True, "one network with SE, ECA, CBAM and GC: by this engine, by hand, by timm"),
}


def main(argv: list[str]) -> int:
    """Run one command."""
    if not argv or argv[0] not in COMMANDS:
        print("usage: python -m benchmarks COMMAND [options]   (COMMAND --help tells the options)\n")
        print("\n".join(f"  {name:<10}{does}" for name, (_, _, does) in COMMANDS.items()))
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    module, needs_pool, _ = COMMANDS[argv[0]]
    if needs_pool:
        rerun_pooled(argv)
    status: int = importlib.import_module(module).main(argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
