"""`SimAM`, the module: owns no parameter and no buffer, so a `state_dict` never shows it."""

from __future__ import annotations

from torch import Tensor, nn

from simam_inject.attention.arguments import check_channel_dim, check_e_lambda, warn_of_channel_count
from simam_inject.attention.functional import simam


class SimAM(nn.Module):
    """Parameter-free attention: multiplies every position of a feature map by its importance, in (0.62, 1).

    The gate is not centred on one: put into a trained network, SimAM scales a site by about 0.7 until normalisation
    statistics are estimated anew or the network is fine-tuned.

    Args:
        e_lambda: the regulariser lambda, finite and above 0; see `simam`. An integer above 1 warns: it is probably a
            channel count, which SimAM does not need.
        channel_dim: 1 for (N, C, spatial), -1 for (N, spatial, C).

    Attributes:
        bypassed: while True, `forward` returns its very input. False at first; a plain attribute, not saved in a
            `state_dict`.

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

    e_lambda: float
    channel_dim: int
    bypassed: bool

    def __init__(self, e_lambda: float = 1e-4, *, channel_dim: int = 1) -> None:
        super().__init__()
        warn_of_channel_count(e_lambda)
        self.e_lambda = check_e_lambda(e_lambda)
        self.channel_dim = check_channel_dim(channel_dim)
        self.bypassed = False

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` attended, or `x` itself while `bypassed`."""
        if self.bypassed:
            return x
        return simam(x, self.e_lambda, channel_dim=self.channel_dim)

    def extra_repr(self) -> str:
        """Return the arguments as they would be written, and whether the module is bypassed."""
        layout = "" if self.channel_dim == 1 else f", channel_dim={self.channel_dim}"
        return f"e_lambda={self.e_lambda:g}{layout}" + (", bypassed" if self.bypassed else "")
