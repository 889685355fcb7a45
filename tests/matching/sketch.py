"""Anatomies written by hand: a few lines per network, so that the matcher is tested without tracing a model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from simam_inject.dataflow.records import Anatomy, Site

INPUT = 64


class Sketch:
    """Values in the order of computation. Each operation reads the last value unless it says otherwise."""

    def __init__(self, channels: int = 3) -> None:
        self.channel_dim = 1
        self.sites: dict[str, Site] = {}
        self.scope = ""
        self.value = ""
        """Path of the operation that computed the current value; empty for the model's input."""
        self.local = "x"
        """The current value as the present scope names it."""
        self.sizes: dict[str, tuple[int, int]] = {"": (channels, INPUT)}
        """Channels and length of what each operation computes."""

    @contextmanager
    def block(self, name: str, *classes: str, **facts: object) -> Iterator[None]:
        """What is sketched inside is the block's own; afterwards the current value is what the block returns."""
        outer, entered = self.scope, self.local
        path = self.scope = self._path(name)
        self.local = f"{path}.x"
        reads = (self.value,) if self.value else ()
        self._enter(Site(self.local, path, "input", reads=reads, **self._shape(*self.sizes[self.value])))
        yield
        shape = self._shape(*self.sizes[self.value])
        block = Site(path, outer, "block", classes[0], classes, operands=(entered,), reads=(self.value,), **shape)
        self._enter(replace(block, **facts))
        self.scope, self.local = outer, path

    def op(
        self, name: str, kind: str, class_name: str | None = None, channels: int = 0, kernel: int = 0, stride: int = 1,
        groups: int = 1, *, reads: tuple[str, ...] = (), size: int = 0, **facts: object,
    ) -> str:  # fmt: skip
        """One operation; `reads` are paths of operations. Returns its path."""
        origins = reads or ((self.value,) if self.value else ())
        before, length = self.sizes[origins[0] if origins else ""]
        after = (channels or before, size or math.ceil(length / stride))
        known: dict[str, object] = self._shape(*after)
        if kernel:
            known |= {"kernel": (kernel, kernel), "stride": (stride, stride), "dilation": (1, 1)}
        if kind.startswith("conv"):
            known |= {"groups": groups, "depthwise": groups == before > 1}
        path = self._path(name)
        bases = (class_name,) if class_name else ()
        site = Site(path, self.scope, kind, class_name, bases, operands=reads or (self.local,), reads=origins, **known)
        self._enter(replace(site, **facts))
        self.sizes[path] = after
        self.value = self.local = path
        return path

    def chain(self, *entries: str) -> str:
        """Operations `name kind Class channels kernel stride groups`, one after the other; `-` is no class."""
        for entry in entries:
            name, kind, class_name, *numbers = entry.split()
            self.op(name, kind, None if class_name == "-" else class_name, *map(int, numbers))
        return self.value

    def join(self, branch: str, skip: str = "", skip_value: str = "") -> str:
        """A residual add. `branch` and `skip` are named as the scope does; without a skip, the block's input joins."""
        given = self.sites[f"{self.scope}.x"]
        origins = [self.sites[branch].reads[0] if self.sites[branch].kind == "block" else branch]
        origins += [skip_value] if skip_value else given.reads
        path = self.op("add", "add", reads=tuple(origins))
        self.edit(path, operands=(branch, skip or given.path))
        self.edit(branch, joins=path)
        return path

    def edit(self, path: str, **facts: object) -> None:
        """Change facts of a value that is there."""
        self.sites[path] = replace(self.sites[path], **facts)

    def anatomy(self) -> Anatomy:
        """The sketch as records; readers are the inverse of reads."""
        readers: defaultdict[str, list[str]] = defaultdict(list)
        for site in self.sites.values():
            for read in site.reads if site.kind not in ("block", "input") else ():
                readers[read].append(site.path)
        sites = (replace(site, readers=tuple(readers[site.path])) for site in self.sites.values())
        return Anatomy(tuple(sites), ((1, 3, INPUT, INPUT),))

    def _enter(self, site: Site) -> None:
        assert site.path not in self.sites, f"{site.path} is there twice"
        self.sites[site.path] = site

    def _path(self, name: str) -> str:
        return f"{self.scope}.{name}" if self.scope else name

    def _shape(self, channels: int, length: int) -> dict[str, object]:
        shape = (1, channels, length, length) if self.channel_dim == 1 else (1, length, length, channels)
        return {"shape": shape, "dtype": "float32", "channel_dim": self.channel_dim, "reduction": INPUT // length}
