"""What an export says of itself."""

from pathlib import Path

from simam_inject.export.records import Comparison, ExportedSite, ExportReport


def test_a_report_prints_a_line_for_each_run_and_site():
    site = ExportedSite("layer1.0.conv2", "layer1.0.simam_conv2", 0.1, 1, "name")
    report = ExportReport(Path("net.onnx"), "onnx", (site,), (Comparison(((1, 3, 8, 8),), 1e-7, 0.02),), 1e-5)
    assert str(report).splitlines() == [
        "net.onnx (onnx): 1 of 1 sites are live in its graph",
        "  1x3x8x8  1.0e-07 from eager (at most 1e-05); without SimAM 2.0e-02",
        "  layer1.0.conv2  e_lambda=0.1  found by name",
    ]
