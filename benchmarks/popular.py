"""SimAM as it is popularly written: one out-of-place operation after the other, in the dtype of its input.

The yardstick: eager, it makes 15 full-size reads and writes forward and 40 backward, and keeps four copies of x.
Written here from the formula; NaN on a 1x1 map, and overflowing in float16, as that form is.
"""

import torch
from torch import nn


class PopularSimAM(nn.Module):
    def __init__(self, e_lambda: float = 1e-4) -> None:
        super().__init__()
        self.e_lambda = e_lambda

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[2] * x.shape[3] - 1
        squares = (x - x.mean(dim=(2, 3), keepdim=True)).pow(2)
        variance = squares.sum(dim=(2, 3), keepdim=True) / n
        energy = squares / (4 * (variance + self.e_lambda)) + 0.5
        return x * torch.sigmoid(energy)
