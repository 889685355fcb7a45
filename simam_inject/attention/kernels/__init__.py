"""SimAM in Triton, for eager mode on a GPU. Nothing here is imported before a GPU tensor is attended.

A tile is some planes of one sample by some of their positions. A tensor comes as its (sample, channel, position)
strides, so the same kernels serve channels-first memory, where positions lie together, and channels-last, where
channels do: only the shape of the tile differs, and the compiler orders the threads along the stride that is one.

    whole    the planes of a tile fit on chip: every tensor is read or written once
    looped   a program walks along its planes twice, for the sums and to apply; the second read mostly comes from L2
    split    few large planes: programs share a plane and write partial sums; a second kernel merges them and applies

Sums are float32, and there are no atomics: results do not depend on the order in which programs run. `launch` chooses.

Tested under Triton's interpreter, and compiled for sm_90 without a device. **Not timed on a GPU yet**: tile sizes, the
number of warps and the limits between the three kinds are from theory.
"""
