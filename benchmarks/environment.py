"""What made the figures: versions, processor, threads, allocator, commit."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.process import is_pooled

ROOT = Path(__file__).resolve().parents[1]


def environment(device: torch.device) -> dict[str, str]:
    """The block that goes with every table."""
    block = {
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor",
        "threads": str(torch.get_num_threads()),
        "malloc": "pooled" if is_pooled() else "default",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "timm": _version("timm"),
        "commit": _commit(),
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
    }
    if device.type == "cuda":
        block["cuda"] = str(torch.version.cuda)
    return block


def _processor() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "simam_inject/attention", "benchmarks/*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" and changes" if changed else "")
