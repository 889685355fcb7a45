"""Records of one recorded forward, which all later stages use. No torch.

A `Site` is one value of the model: what a child module returns, what an operation computes, what a block returns, or
what a block is given. Its `path` names that value:

    layer1.0.conv2     what the child module `conv2` returns, called from block `layer1.0`
    layer1.0.relu[2]   the same child's second call in one forward (the first is `layer1.0.relu`)
    layer1.0.add       what an operation of that block computes; the second one is `layer1.0.add[2]`
    layer1.0           what the block itself returns (kind `block`)
    layer1.0.x         what the block is given as its parameter `x` (kind `input`)
    fpn:0, neck:p3     one tensor of a list, tuple or dict that a module or an operation returns
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

SCRIPTED = "is a torch.jit.ScriptModule, whose operations cannot be recorded"
"""Obstacle of a module whose code is compiled, and of those inside it."""


@dataclass(frozen=True, slots=True)
class Site:
    """One value of the model and everything a rule can ask about it."""

    path: str
    scope: str
    """Dotted path of the block whose forward computes the value ("" is the model itself)."""
    kind: str
    """Op kind: conv2d, batch_norm, relu, add, cat, max_pool, linear, ... (see `kinds`); `block` for a module with
    children; `input` for what a block is given; `module` for a module without children whose call has another path: one
    that the model names, and that a Sequential beside it runs."""
    class_name: str | None = None
    """Class of the module that returns the value; None for a function, method or operator."""
    bases: tuple[str, ...] = ()
    """Names of that class and its bases, nearest first, without `Module` and `object`."""
    shape: tuple[int, ...] | None = None
    """Shape in the first call of the example forward; None if it is not one tensor or never ran."""
    dtype: str | None = None
    channel_dim: int = 1
    """1 for N, C, spatial; -1 for N, spatial, C."""
    axes: str = ""
    """The dimensions in words: `NCHW`, `NHWC`, `NLC`, `NCDHW`, ...; empty where the value is not a feature map."""
    axes_measured: bool = False
    """The axes were found by running other batch and image sizes; otherwise they were inferred from the operations."""
    reduction: int | None = None
    """Input size / map size, as a power of two: 1, 2, 4, 8, 16, 32."""
    kernel: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    groups: int | None = None
    depthwise: bool = False
    """A conv whose groups equal its input channels (more than one)."""
    operands: tuple[str, ...] = ()
    """Paths of the tensor values it reads, as named inside `scope`."""
    reads: tuple[str, ...] = ()
    """Paths of the operations whose results it reads, or is given, followed across block borders and operations that
    pass their input on: never a `block` or `input`."""
    readers: tuple[str, ...] = ()
    """Paths of the operations that read its value, across block borders."""
    joins: str | None = None
    """Path of the residual add that this value enters as the branch (not as the skip)."""
    structure: tuple[str, ...] = ()
    """`residual`: a block whose own forward joins a branch with its skip. `main`: a block that the network repeats
    between stem and head, the outermost of nested ones. `decoder`: a block that joins an upsampled map with an
    earlier one, or reads the joined map; see `dataflow.structure`."""
    on_skip: bool = False
    """Inside a residual block, an operation on the skip (its projection), not on the branch."""
    in_gate: bool = False
    """An operation whose result only scales another feature map (squeeze-and-excitation and its like), or gives the
    offsets of a deformable convolution."""
    maps: tuple[str, ...] = ()
    """Paths of the tensors that this list, tuple or dict holds (`fpn:0`, `fpn:1`); empty for a tensor."""
    nested_maps: tuple[str, ...] = ()
    """Paths of the tensors in the lists, tuples and dicts that it holds (`head:1:0`). A rule names them by path."""
    runs: int = 1
    """How often the example forward computed it; 0 means never."""
    obstacle: str | None = None
    """Why SimAM cannot be applied to the value, for any recipe; None if it can."""

    @property
    def channels(self) -> int | None:
        """Size of `channel_dim`; None for fewer than three dimensions. Meant only where `axes` is not empty."""
        return self.shape[self.channel_dim] if self.shape is not None and len(self.shape) > 2 else None

    @property
    def spatial(self) -> tuple[int, ...] | None:
        """The other sizes but the first; None for fewer than three dimensions. As `channels`, it needs `axes`."""
        if self.shape is None or len(self.shape) < 3:
            return None
        return self.shape[2:] if self.channel_dim == 1 else self.shape[1:-1]

    @property
    def stage(self) -> int | None:
        """log2(reduction) - 1: ResNet's layer1 to layer4 are stages 1 to 4, the stem is 0."""
        return None if self.reduction is None else self.reduction.bit_length() - 2


@dataclass(frozen=True, slots=True)
class Anatomy:
    """All sites of one model, in the order the example forward computed them (those that never ran come last)."""

    sites: tuple[Site, ...]
    input_shapes: tuple[tuple[int, ...], ...] = ()
    site_by_path: dict[str, Site] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "site_by_path", {site.path: site for site in self.sites})

    @property
    def scripted(self) -> list[str]:
        """Paths of the scripted and traced modules, without those inside of others."""
        found = [site.path for site in self.sites if site.obstacle == SCRIPTED]
        return [path for path in found if path.rpartition(".")[0] not in found]

    def blocks(self) -> Iterator[Site]:
        """Sites that are the outputs of modules with children."""
        return (site for site in self.sites if site.kind == "block")
