"""Which dimensions of a tensor are batch, channels and spatial: measured where possible.

The forward runs again with a larger batch, and again with a larger image; only shapes are noted. The dimension that
changes with the batch is the batch dimension, those that change with the image are spatial, the rest are channels.
Where a network takes one size only, the layout is propagated through its operations: a convolution writes N, C,
spatial; permutations and reshapes move the channels; a linear layer or a layer norm over a tensor of unknown layout
writes channels last. What does not come from these (the input, parameters, constants, operations that are not known)
has no layout: SimAM is not applied to a guess. Class names are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from simam_inject.dataflow.values import NOWHERE, Layout, Shape, Value
from simam_inject.kinds import FAMILIES, words
from simam_inject.nested import map_nested

SAMPLES_ADDED = 1
"""How many samples the run with a larger batch adds: a first dimension that grows by more consists of windows."""

_SECOND = ("batch_norm", "instance_norm", "group_norm", "interpolate", "pixel_", "local_response_norm")
_LAST = ("embedding", "multi_head_attention_forward", "gru", "lstm", "rnn_")
_LAST_IF_UNKNOWN = ("linear", "rms_norm")
_RESIZES = words("cat pad repeat repeat_interleave mean sum amax amin max min norm index_select glu topk diff gather")
"""Operations that change the size of the channel dimension, and leave it where it is."""
_REDUCES = words("mean sum amax amin max min logsumexp median prod")
"""Those that can drop dimensions."""
_REARRANGES = words("einsum tensordot as_strided permute_copy transpose_copy view_copy")
"""Operations that can move channels without a trace in shapes."""
_MOVES = words(
    """
    chunk expand flatten getitem h m_h m_t moveaxis movedim narrow permute rearrange reshape reshape_as rot90 select
    split squeeze swapaxes swapdims t tensor_split transpose unbind unflatten unsqueeze view view_as
    """
)


def layout_after(
    kind: str,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inputs: list[Value],
    result: torch.Tensor,
) -> Layout:
    """Where an operation leaves the channels.

    Args:
        kind: of the operation.
        func: the torch function, which is called for a tensor of distinct strides too; with its args and kwargs.
        inputs: the tensors that it reads, parameters aside.
        result: one tensor that it computed.
    """
    rank = result.dim()
    before = inputs[0].layout if inputs else NOWHERE
    if kind in FAMILIES["conv"]:
        return frozenset({rank - 1 - int(kind[-2])})  # 1, or 0 without a batch
    if kind.startswith(_SECOND) or (kind.endswith("pool") and rank > 2):
        # Tokens that are normalized by position, and pooled channels, have no layout from here on.
        return (before or frozenset({1})) if before <= {0} or 1 in before else NOWHERE
    if not rank:
        return NOWHERE
    if kind.startswith(_LAST):
        return frozenset({rank - 1})
    if kind.startswith(_LAST_IF_UNKNOWN) or (kind == "layer_norm" and _normalizes_one(args, kwargs)):
        is_vector = inputs and len(inputs[0].shape) > rank  # its weight: the last dimension is gone
        return before - {rank} if is_vector else before or frozenset({rank - 1})
    if not inputs or kind in _REARRANGES:
        return NOWHERE
    if kind in _MOVES:
        return _moved(func, args, kwargs, inputs[0], tuple(result.shape))
    if kind in ("matmul", "bmm") and len(inputs) == 2:
        return _multiplied(inputs[0], inputs[1], rank)
    like = next((value for value in inputs if value.layout and len(value.shape) == rank), inputs[0])
    if len(like.shape) != rank:
        dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
        return _of_another_rank(kind, dim, inputs[0], rank)
    # Each position is computed from the same positions.
    lengths = [(result.shape[dim], like.shape[dim]) for dim in like.layout]
    is_kept = kind in _RESIZES or all(new in (length, 1) or length == 1 for new, length in lengths)
    return like.layout if is_kept else NOWHERE


def _multiplied(first: Value, second: Value, rank: int) -> Layout:
    """Layout after a product of two tensors, of which the second may be a vector."""
    if len(second.shape) == 1:
        return first.layout - {rank}
    rows = first.layout - {rank - 1} if len(first.shape) == rank else NOWHERE
    return rows | (second.layout & {rank - 1})


def _of_another_rank(kind: str, dim: Any, source: Value, rank: int) -> Layout:
    """Layout after a stack, or after a reduction that drops dimensions; none if the channels are among them."""
    if not source.layout:
        return NOWHERE
    if kind == "stack":
        added = (dim or 0) % rank
        return frozenset(one + (one >= added) for one in source.layout)
    given = [dim] if isinstance(dim, int) else dim if isinstance(dim, (tuple, list)) else []
    dims = {one % len(source.shape) for one in given}
    if kind not in _REDUCES or len(source.shape) - len(dims) != rank or source.layout & dims:
        return NOWHERE
    return frozenset(one - sum(dropped < one for dropped in dims) for one in source.layout)


def _normalizes_one(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    return isinstance(shape, int) or len(shape) == 1


def _moved(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], source: Value, shape: Shape
) -> Layout:
    """Layout after an operation that only moves elements: do the same to a probe, and look where its strides went.

    Each dimension of a contiguous tensor has another stride, by which the channels are found again in the result.
    """
    if not source.layout or 0 in source.shape:
        return NOWHERE
    probe = torch.empty(source.shape, device="meta")
    is_first = True

    def replace(leaf: Any) -> Any:
        nonlocal is_first
        if isinstance(leaf, torch.Tensor) and is_first:
            is_first = False
            return probe
        return leaf

    try:
        new_args, new_kwargs = map_nested(replace, (tuple(args), dict(kwargs)))
        moved = func(*new_args, **new_kwargs)
        results = [moved] if isinstance(moved, torch.Tensor) else list(moved)
        target = next(tensor for tensor in results if tuple(tensor.shape) == shape)
    except (RuntimeError, TypeError, StopIteration, ValueError, IndexError, NotImplementedError):
        return NOWHERE
    return _found_again(source, probe, target)


def _found_again(source: Value, probe: torch.Tensor, target: torch.Tensor) -> Layout:
    """Dimensions of the moved probe whose strides are those of the channels, or of a part of them."""
    found = set()
    for dim in source.layout:
        stride, length = probe.stride(dim), source.shape[dim]
        for place in range(target.dim()):
            size, step = target.shape[place], target.stride(place)
            if size != 1 and step == stride and size <= length:  # the channels, or the inner part of them
                found.add(place)
            elif size != 1 and length > size and step > stride and step % stride == 0 and step < stride * length:
                found.add(place)  # the outer part of channels that were split into groups
            elif size > length > 1 and size % length == 0 and size * step == stride * length:
                found.add(place)  # channels merged with the next dimensions (space to depth)
            elif size == length == 1 and place == dim and target.dim() == len(source.shape):
                found.add(place)
    return frozenset(found)


def find_axes(
    value: Value, batch: Shape | None, size: Shape | None, *, fixed_size: bool, samples: int | None
) -> dict[str, Any]:
    """Facts of a site about its axes, for a value of rank 3 to 5; or the obstacle, if SimAM cannot be applied to it.

    Args:
        value: in the example forward.
        batch: its shape with more samples, if that was run.
        size: its shape for a larger image, if that was run.
        fixed_size: the network takes no other image size.
        samples: number of samples in the example; None if it is not known, or if more samples were run.
    """
    shape, layout, rank = value.shape, value.layout, len(value.shape)
    other_batch, other_size = (other if other is not None and len(other) == rank else None for other in (batch, size))
    resized = {dim for dim in range(rank) if other_size is not None and other_size[dim] != shape[dim]}
    problem = _NO_BATCH if layout == {0} else None
    if problem is None and samples is not None and shape[0] != samples:
        problem = f"its first dimension does not hold the {samples} samples of the example: its shape is {{}}"
    if other_batch is not None:
        more = other_batch[0] - shape[0] if fixed_size and other_size is None else 0
        grown = [dim for dim in range(rank) if other_batch[dim] != shape[dim]]
        problem = _why_no_samples(grown, more) if grown else _NO_GROWTH
    if problem is None and 0 in resized:
        problem = "its first dimension depends on the image size, as with windows or positions: its shape is {}"
    if problem is not None:
        return {"obstacle": problem.format(shape)}
    candidates = set(range(1, rank)) - resized
    measured = bool(resized) and len(candidates) == 1
    channel = candidates.pop() if measured else _known_channel(layout, candidates, resized, other_batch is not None)
    if isinstance(channel, str):
        return {"obstacle": channel.format(shape)}
    if channel not in (1, rank - 1):
        return {"obstacle": f"has its channels in dimension {channel}, neither second nor last: its shape is {shape}"}
    spatial = {3: "L", 4: "HW", 5: "DHW"}[rank]
    facts = {"channel_dim": 1, "axes": f"NC{spatial}"} if channel == 1 else {"channel_dim": -1, "axes": f"N{spatial}C"}
    return facts | {"axes_measured": measured and other_batch is not None}


_NO_BATCH = "has no batch dimension: its shape is {}; give an example with a batch"
_NO_GROWTH = (
    "does not grow with the first dimension of the inputs: its shape stays {}; if that dimension counts "
    "points or voxels, inject the part that is given maps, as in inject(model.part, recipe, example_inputs=map)"
)


def _why_no_samples(grown: list[int], more: int) -> str | None:
    """Why the first dimension is not the batch.

    Args:
        grown: dimensions that are larger with a larger batch.
        more: how much larger the first dimension is then.
    """
    if grown != [0]:
        return f"its batch is in dimension {grown[0]}, not the first, so SimAM would mix samples: its shape is {{}}"
    if more > SAMPLES_ADDED:
        return (
            f"its first dimension grows by {more} for one sample more, so it holds windows, groups or frames: "
            "its shape is {}"
        )
    return None


def _known_channel(layout: Layout, candidates: set[int], resized: set[int], has_batch: bool) -> int | str:
    """The dimension of the channels according to the operations, among those that the other runs leave."""
    if not candidates:
        return "has no dimension of fixed size that could hold channels: its shape is {}"
    layout = layout - {0} if has_batch else layout  # those of a grouped convolution over all samples, split again
    known = layout & candidates if resized else layout
    if len(known) != 1 or len(layout) > 1:
        return "has its channels in several dimensions, or in none that is known: its shape is {}"
    (channel,) = known
    return channel or _NO_BATCH
