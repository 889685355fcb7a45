"""Blocks that hand a value to C++, and a process of its own to trace them in: such a call may crash the interpreter."""

import copy
import json
import sys

import torch
from torch.utils.checkpoint import checkpoint

from simam_inject import inject, injected, plan, simam
from tests.engine.blocks import Block, Net
from tests.engine.oracle import hooked, same_bits

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))


class Straight(torch.autograd.Function):
    """Rounds; its gradient passes through, doubled."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


@torch.jit.script
def scripted(x):
    return x * 2


class Rounds(Block):
    def forward(self, x):
        return self.b(Straight.apply(self.a(x)))


class RunsScript(Block):
    def forward(self, x):
        return self.b(scripted(self.a(x)))


class MakesTensor(Block):
    def forward(self, x):
        return self.b(torch.as_tensor(self.a(x)))


class MakesSubclass(Block):
    def forward(self, x):
        return self.b(torch.Tensor._make_subclass(torch.Tensor, self.a(x)))


class Recomputes(Block):
    def forward(self, x):
        return checkpoint(self.b, self.a(x), use_reentrant=True)


BLOCKS = (Rounds, RunsScript, MakesTensor, MakesSubclass, Recomputes)


def outcome(block):
    """How the block of a net is attended at `a`: [means, note, is the output right?, are the gradients right?]."""
    torch.manual_seed(3)
    plain = Net(block())
    ours = copy.deepcopy(plain)
    (planned,) = plan(ours, "after block.a", example_inputs=X).insertions
    inject(ours, "after block.a", example_inputs=X)
    assert injected(ours)[0].means == planned.means
    results = []
    for model in (plain, ours):
        with hooked(plain, ["block.a"], 1e-4, simam):
            output = model(X.clone().requires_grad_())
            if output.requires_grad:
                output.sum().backward()
        results.append((output.detach(), [parameter.grad for parameter in model.parameters()]))
    return [planned.means, planned.note, *(same_bits(one, other) for one, other in zip(*results, strict=True))]


if __name__ == "__main__":
    for block in BLOCKS:
        sys.stdout.write(json.dumps([block.__name__, *outcome(block)]) + "\n")
