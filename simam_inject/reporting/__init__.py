"""Reports: the records of a plan, of a verification and of a model's anatomy as tables, as a page and as JSON types.

Nothing here prints: what is returned is for a `rich` console, for a file or for `json.dumps`.
"""

from simam_inject.reporting.anatomy import Place as Place
from simam_inject.reporting.anatomy import summarize as summarize
from simam_inject.reporting.drawing import Drawing as Drawing
from simam_inject.reporting.drawing import draw as draw
from simam_inject.reporting.plans import plan_to_dict as plan_to_dict
from simam_inject.reporting.plans import render_plan as render_plan
from simam_inject.reporting.sites import render_sites as render_sites
from simam_inject.reporting.sites import sites_to_dict as sites_to_dict

__all__ = ["Drawing", "Place", "draw", "plan_to_dict", "render_plan", "render_sites", "sites_to_dict", "summarize"]
