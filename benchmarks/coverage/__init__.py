"""What "any CNN" is worth: every model of three libraries planned, injected, checked and ejected, one row each.

    python -m benchmarks.coverage --library torchvision            sweep, resumable
    python -m benchmarks.coverage --library all --table            write docs/coverage.md from the rows so far

Two passes. The *inventory* builds every model on the meta device and notes its size, family and block classes. The
*sweep* then runs, in a forked process per model, `planned` (plan, inject and eject at the declared size, the forward on
meta tensors) for every model, and the numeric checks of `probes` for the smallest model of each distinct set of block
classes and for the smallest of each family.
"""
