"""`SimAM`, the module: it has no parameter and no buffer, so no key of a `state_dict` is of it."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from simam_inject.attention.arguments import ArgumentError, check_channel_dim, check_number
from simam_inject.attention.functional import simam
from simam_inject.errors import warn_of_channel_count


class SimAM(nn.Module):
    """Parameter-free attention: multiplies every position of a feature map by its importance, in (0.62, 1).

    The gate is not centred on one: in a trained network, SimAM scales features by about 0.7 until a `gain` is set,
    normalization statistics are recomputed, or the network is fine-tuned.

    Args:
        e_lambda: the regularizer lambda, finite and above 0; see `simam`. An integer above 1 warns: it is probably a
            channel count, which SimAM does not need.
        channel_dim: 1 for (N, C, spatial), -1 for (N, spatial, C).

    Attributes:
        e_lambda: as given; a float.
        channel_dim: as given.
        strength: from 0 (the identity) to 1 (SimAM, at first); see `simam`.
        gain: what the gate is multiplied by; 1 at first. See `simam`.
        bypassed: if True, `forward` returns its input. Default: False; True inside `bypass(model)`, whatever is set.

    They may be set at any time, are checked when the module runs, are copied and pickled with it, and never appear in a
    `state_dict`. In an injected model, `verify` reports another `e_lambda` than the planned one.

    Raises:
        ArgumentError: an argument is out of range.

    Shape:
        (N, C, L), (N, C, H, W) or (N, C, D, H, W), or with C last; same as the input.

    Source:
        Yang et al., "SimAM", ICML 2021, PMLR 139:11863-11874.

    Example:
        >>> import torch
        >>> SimAM(e_lambda=0.1)(torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    _bypassed = False
    _bypasses: tuple[Any, ...] = ()
    """Every `with bypass(model)` that it is inside of; in copies, also those that have ended."""

    def __init__(self, e_lambda: float = 1e-4, *, channel_dim: int = 1) -> None:
        super().__init__()
        self.e_lambda = check_number("e_lambda", e_lambda)
        warn_of_channel_count(e_lambda, f"SimAM(e_lambda={e_lambda!r})", stacklevel=2)
        self.channel_dim = check_channel_dim(channel_dim)
        self.strength = 1.0
        self.gain = 1.0

    @property
    def bypassed(self) -> bool:
        """Whether `forward` returns its input: it was set to True, or the module is inside `with bypass(model)`."""
        return self._bypassed or any(bypass.active for bypass in self._bypasses)

    @bypassed.setter
    def bypassed(self, value: bool) -> None:
        self._bypassed = value

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold."""
        return {**self.__dict__, "_bypasses": tuple(bypass for bypass in self._bypasses if bypass.active)}

    def forward(self, x: Tensor) -> Tensor:
        """Return SimAM of `x`, or `x` itself while `bypassed`."""
        if self.bypassed:
            return x
        return simam(x, self.e_lambda, channel_dim=self.channel_dim, strength=self.strength, gain=self.gain)

    def extra_repr(self) -> str:
        """Return the arguments as they would be written, and what differs from a new module."""
        parts = [f"e_lambda={self.e_lambda:g}"]
        parts += [f"channel_dim={self.channel_dim}"] if self.channel_dim != 1 else []
        parts += [f"{name}={getattr(self, name):g}" for name in ("strength", "gain") if getattr(self, name) != 1.0]
        return ", ".join(parts + ["bypassed"] * self.bypassed)

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by `torch.jit.script` on every module, before it compiles any."""
        raise ArgumentError("SimAM cannot be scripted: use torch.jit.trace(model, example)")


# It is plain data: `torch.load(weights_only=True)` may build it.
torch.serialization.add_safe_globals([SimAM])
