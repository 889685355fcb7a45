"""Export to ONNX, torch.export and TorchScript, with a check that every site is in the file."""

from simam_inject.export.exporting import export, prove
from simam_inject.export.report import Comparison, ExportedSite, ExportError, ExportReport, LostSiteError

__all__ = ["Comparison", "ExportError", "ExportReport", "ExportedSite", "LostSiteError", "export", "prove"]
