"""Files for other runtimes, each proven to hold every site: ONNX, torch.export, TorchScript."""

from simam_inject.export.exporting import export, prove
from simam_inject.export.records import Comparison, ExportedSite, ExportError, ExportReport, LostSiteError

__all__ = ["Comparison", "ExportError", "ExportReport", "ExportedSite", "LostSiteError", "export", "prove"]
