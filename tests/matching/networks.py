"""Anatomies written down by hand, in `networks.txt`: one line per value, in the order of computation.

    path kind [is=structure,...] [skip] [gate] [class=Class,Base,...] [map=CxHxW | last=HxWxC] [k= s= g=[dw]]
         [<operands] [reads=] [joins=] [maps=] [scope=] [runs=] [! obstacle]

`scope` is the module above and `reads` the operands where a line does not say it; `readers` is the inverse of `reads`.
The input is 64 long.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from simam_inject.dataflow.anatomy import Anatomy, Site

INPUT = 64


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.replace("(root)", "").split(","))


def _site(line: str) -> Site:
    line, _, obstacle = line.partition(" ! ")
    path, kind, *words = line.split()
    facts = {"reads": "", "class": "", "scope": path.partition(":")[0].rpartition(".")[0]}
    facts |= {word.partition("=")[0]: word.partition("=")[2] for word in words if not word.startswith("<")}
    operands = next((word[1:].split(",") for word in words if word.startswith("<")), [])
    shape = _numbers(facts.get("map") or facts.get("last") or "0")
    length = shape[-1] if "map" in facts else shape[0]
    known = bool(shape[0])
    kernel = _numbers(facts["k"]) if "k" in facts else None
    kernel = kernel * 2 if kernel is not None and len(kernel) == 1 else kernel
    groups = facts.get("g", "1")
    stride = int(facts.get("s", 1))
    return Site(
        path.replace("(root)", ""), facts["scope"].replace("(root)", ""), kind,
        class_name=facts["class"].split(",")[0] or None, bases=_names(facts["class"]) if facts["class"] else (),
        shape=(1, *shape) if known else None, dtype="float32", channel_dim=-1 if "last" in facts else 1,
        reduction=INPUT // length if known and len(shape) == 3 else None,
        kernel=kernel, stride=(stride, stride) if kernel else None, dilation=(1, 1) if kernel else None,
        groups=int(groups.removesuffix("dw")) if "conv" in kind else None, depthwise=groups.endswith("dw"),
        operands=tuple(operands),
        reads=_names(facts["reads"]) if facts["reads"] else tuple(path for path in operands if path != "x"),
        joins=facts.get("joins"), structure=_names(facts["is"]) if "is" in facts else (), on_skip="skip" in facts,
        in_gate="gate" in facts, maps=_names(facts["maps"]) if "maps" in facts else (), runs=int(facts.get("runs", 1)),
        obstacle=obstacle or None,
    )  # fmt: skip


def _read() -> dict[str, Anatomy]:
    networks = {}
    for section in Path(__file__).with_name("networks.txt").read_text(encoding="utf-8").split("\n["):
        name, _, body = section.lstrip("[").partition("]\n")
        lines = [line.strip() for line in body.splitlines() if line.strip()]
        sites = [_site(line) for line in lines]
        operations = [site for site in sites if site.kind not in ("block", "input")]
        readers = {site.path: tuple(o.path for o in operations if site.path in o.reads) for site in sites}
        networks[name] = Anatomy(
            tuple(replace(site, readers=readers[site.path]) for site in sites), ((1, 3, INPUT, INPUT),)
        )
    return networks


NETWORKS = _read()
