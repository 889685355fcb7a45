"""Compare attention modules in a network: paired runs, statistics, and a report."""

from simam_inject.compare.cells import Cell, Report
from simam_inject.compare.report import Comparison
from simam_inject.compare.running import compare
from simam_inject.compare.statistics import Difference
from simam_inject.compare.study import load_comparison

__all__ = ["Cell", "Comparison", "Difference", "Report", "compare", "load_comparison"]
