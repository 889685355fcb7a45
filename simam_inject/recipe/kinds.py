"""Names of operations: what `op:` and the members of a `pattern` can say.

A kind is one operation however it is written: `relu` is `nn.ReLU`, `F.relu`, `x.relu()` and `torch.relu_`. A family
is a name for several kinds: `conv`, `norm`, `act`, `pool`. A name may be a glob (`*norm`). The vocabulary is open,
since a model may compute anything; a name close to a known kind is refused as a slip of the pen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from simam_inject.recipe.globs import Glob, parse_glob
from simam_inject.recipe.wording import describe, suggest


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FAMILIES: dict[str, frozenset[str]] = {
    "conv": _words("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    "norm": _words("batch_norm group_norm instance_norm layer_norm local_response_norm rms_norm"),
    "act": _words(
        "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish prelu relu relu6 rrelu "
        "selu sigmoid silu softplus softsign tanh tanhshrink"
    ),
    "pool": _words("adaptive_avg_pool adaptive_max_pool avg_pool fractional_max_pool lp_pool max_pool"),
}
_OTHER = _words(
    "add bmm cat chunk clamp contiguous deform_conv2d div drop_path dropout einsum expand flatten flip getitem glu "
    "identity interpolate linear matmul max mean mul normalize pad permute pixel_shuffle pixel_unshuffle repeat "
    "reshape roll scaled_dot_product_attention softmax split squeeze stack sub sum transpose unbind unflatten unfold "
    "unsqueeze view"
)
KINDS = frozenset().union(*FAMILIES.values(), _OTHER)
NOT_OPERATIONS = frozenset({"block", "input"})
"""Kinds of sites that no operation name selects: a module's own result, and what a module is given."""

_ALIASES = {
    "+": "add",
    "*": "mul",
    "activation": "act",
    "bn": "batch_norm",
    "concat": "cat",
    "concatenate": "cat",
    "convolution": "conv",
    "gn": "group_norm",
    "ln": "layer_norm",
    "lrn": "local_response_norm",
    "normalization": "norm",
    "pooling": "pool",
    "swish": "silu",
    "syncbatchnorm": "batch_norm",
    "upsample": "interpolate",
}
_LITERAL = re.compile(r"[A-Za-z_+][A-Za-z0-9_]*|\*")


@dataclass(frozen=True, slots=True)
class Kinds:
    """One name of operations: a kind, a family or a glob. Make it with `parse_kinds`."""

    text: str

    def matches(self, kind: str) -> bool:
        """An operation of this kind is meant."""
        if kind in NOT_OPERATIONS:
            return False
        return kind in FAMILIES[self.text] if self.text in FAMILIES else Glob(self.text).matches(kind)

    def __str__(self) -> str:
        return self.text


def parse_kinds(text: object) -> Kinds:
    """Check the name of an operation; spellings such as `BatchNorm2d`, `SiLU` and `concat` become the kind they mean.

    Raises:
        ValueError: not a text, not a name or glob, or a name that is almost, but not quite, a known one.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"found {describe(text)}; operations are named like conv2d, batch_norm, relu or act")
    name = text.strip()
    if name == "*":
        return Kinds(name)
    if name.lower() == "depthwise":
        raise ValueError(
            "depthwise is a condition, not an operation; write conv2d[g=depthwise] in a pattern, "
            "else {op: conv2d, groups: depthwise}"
        )
    if parse_glob(name).is_wild:
        return Kinds(name.lower())
    if not _LITERAL.fullmatch(name):
        raise ValueError(f"found {describe(name)}; operations are named like conv2d, batch_norm or *norm")
    known = known_kind(name)
    if known is None:
        _refuse_slip(name.lower())
    return Kinds(known or name.lower())


def known_kind(name: str) -> str | None:
    """The kind or family that `name` spells, or None."""
    lower = name.lower()
    plain = lower.replace("_", "")
    for spelling in (plain, re.sub(r"[123]d$", "", plain)):
        if spelling in _ALIASES:
            return _ALIASES[spelling]
        if spelling in _SPELLINGS:
            return _SPELLINGS[spelling]
    return None


def _refuse_slip(name: str) -> None:
    near = suggest(name, KINDS | FAMILIES.keys(), cutoff=0.75)
    if near:
        raise ValueError(
            f"found {name!r}; operations are named like conv2d, batch_norm, relu, max_pool, add, cat, or by family: "
            f"{', '.join(FAMILIES)}. Did you mean {near!r}?"
        )


_SPELLINGS = {name.replace("_", ""): name for name in sorted(KINDS | FAMILIES.keys())}
