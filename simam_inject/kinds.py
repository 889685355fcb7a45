"""The vocabulary of operations: one word for an operation, whether written as a module, a function or an operator.

A *kind* is one operation however it is written: `relu` is `nn.ReLU`, `F.relu`, `x.relu()` and `torch.relu_`. A *family*
is a name for several kinds: `conv`, `norm`, `act`, `pool`. The vocabulary is open: a kind that is not listed here is a
class or function name in snake case.
"""

from __future__ import annotations

import re


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


FAMILIES = {
    "conv": words("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d deform_conv2d"),
    "norm": words("batch_norm group_norm instance_norm layer_norm local_response_norm rms_norm"),
    "act": words(
        "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish prelu relu relu6 rrelu "
        "selu sigmoid silu softplus softsign tanh tanhshrink"
    ),
    "pool": words("adaptive_avg_pool adaptive_max_pool avg_pool fractional_max_pool lp_pool max_pool"),
}
KINDS = frozenset().union(
    *FAMILIES.values(),
    words(
        "add bmm cat chunk clamp contiguous div drop_path dropout einsum expand flatten flip getitem glu "
        "identity interpolate linear matmul max mean mul normalize pad permute pixel_shuffle pixel_unshuffle repeat "
        "reshape roll scaled_dot_product_attention softmax split squeeze stack sub sum transpose unbind unflatten "
        "unfold unsqueeze view"
    ),
)
TRANSPARENT = words(
    """
    identity getitem dropout alpha_dropout feature_dropout feature_alpha_dropout drop_path drop_block stochastic_depth
    contiguous clone detach to type type_as float half bfloat16 double cpu cuda
    """
)
"""Kinds that chains of operations and the rules of structure look through: in eval mode they pass their first input on.
"""
NOT_OPERATIONS = frozenset({"block", "input", "module"})
"""Kinds of sites that no operation name selects: a module's own result, and what a module is given."""

_ALIASES = {
    "+": "add", "iadd": "add", "radd": "add", "isub": "sub", "rsub": "sub", "*": "mul", "imul": "mul", "rmul": "mul",
    "multiply": "mul", "truediv": "div", "itruediv": "div", "rtruediv": "div",
    "activation": "act", "convolution": "conv", "normalization": "norm", "pooling": "pool",
    "bn": "batch_norm", "syncbatchnorm": "batch_norm", "frozenbatchnorm": "batch_norm", "batchnormact": "batch_norm",
    "frozenbatchnormact": "batch_norm", "gn": "group_norm", "groupnorm1": "group_norm", "ln": "layer_norm",
    "lrn": "local_response_norm",
    "swish": "silu", "gelutanh": "gelu", "quickgelu": "gelu", "hardmish": "mish",
    "concat": "cat", "concatenate": "cat", "upsample": "interpolate", "zeropad": "pad",
}  # fmt: skip
_SPELLINGS = {name.replace("_", ""): name for name in sorted(KINDS | FAMILIES.keys())} | _ALIASES
_WORD_BORDER = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def find_kind(name: str) -> str | None:
    """The kind or family that a name spells, in any letter case; None for one that is not listed.

    >>> find_kind("BatchNorm2d"), find_kind("max_pool2d"), find_kind("concat"), find_kind("Bottleneck")
    ('batch_norm', 'max_pool', 'cat', None)
    """
    plain = name.lower().replace("_", "").removesuffix("withindices")
    plain = re.sub(r"^\w+(?=frozenbatchnorm)", "", plain)  # transformers' have a prefix: `RTDetrFrozenBatchNorm2d`
    return _SPELLINGS.get(plain) or _SPELLINGS.get(re.sub(r"[123]d$", "", plain))


def is_convolution(kind: str) -> bool:
    """A listed convolution, or a function or module of another name that says it, such as `conv_tbc`."""
    return "conv" in kind


def kind_of(name: str) -> str:
    """The kind of an operation whose class or function has this name: a listed one, else the name in snake case.

    >>> kind_of("ReLU6"), kind_of("__iadd__"), kind_of("GridSample")
    ('relu6', 'add', 'grid_sample')
    """
    known = find_kind(name)
    if known is not None and known not in FAMILIES:
        return known
    snake = _WORD_BORDER.sub("_", name.strip("_")).lower()
    return snake if "conv" in snake else re.sub(r"_?[123]d$", "", snake)
