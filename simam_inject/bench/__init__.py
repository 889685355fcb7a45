"""What SimAM costs in the user's own model, compared with the plain model and with other attentions at its sites."""

from simam_inject.bench.run import Bench as Bench
from simam_inject.bench.run import Conditions as Conditions
from simam_inject.bench.run import bench as bench
from simam_inject.bench.variants import PEERS as PEERS

__all__ = ["PEERS", "Bench", "Conditions", "bench"]
