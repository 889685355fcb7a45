"""What SimAM costs in the user's own model, compared with the plain model and with other attentions at its sites."""

from simam_inject.bench.peers import PEERS as PEERS
from simam_inject.bench.run import Bench as Bench
from simam_inject.bench.run import Conditions as Conditions
from simam_inject.bench.run import bench as bench

__all__ = ["PEERS", "Bench", "Conditions", "bench"]
