"""What SimAM costs in the user's own model, compared with the plain model and with other attentions at its sites."""

from simam_inject.bench.run import Bench, Conditions, bench

__all__ = ["Bench", "Conditions", "bench"]
