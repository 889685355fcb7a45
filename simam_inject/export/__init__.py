"""Export to ONNX, torch.export and TorchScript, with a check that every site is in the file."""

from simam_inject.export.exporting import export as export
from simam_inject.export.exporting import prove as prove
from simam_inject.export.records import Comparison as Comparison
from simam_inject.export.records import ExportedSite as ExportedSite
from simam_inject.export.records import ExportError as ExportError
from simam_inject.export.records import ExportReport as ExportReport
from simam_inject.export.records import LostSiteError as LostSiteError

__all__ = ["Comparison", "ExportError", "ExportReport", "ExportedSite", "LostSiteError", "export", "prove"]
