"""What SimAM costs in the user's own model, compared with the plain model and with other attentions at its sites."""

from simam_inject.bench.run import PEERS, Bench, Conditions, bench

__all__ = ["PEERS", "Bench", "Conditions", "bench"]
