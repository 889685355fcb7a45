"""What `compare` returns: the results of a study, and its reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simam_inject.compare.records import Results
from simam_inject.compare.report import render_html, render_markdown


@dataclass(frozen=True, slots=True)
class Comparison(Results):
    """All cells of a study, what they say, and the report about them.

    Example:
        >>> comparison = compare(make_model, ["paper"], train, against=["se"])  # doctest: +SKIP
        >>> for difference in comparison.differences:  # doctest: +SKIP
        ...     print(difference.variant, difference.recipe, difference.mean, difference.verdict)
    """

    def to_markdown(self) -> str:
        """The report as Markdown: tables, without figures."""
        return render_markdown(self)

    def to_html(self) -> str:
        """The report as one HTML file with its figures inside."""
        return render_html(self)

    def save(self, html: str | Path | None = None, markdown: str | Path | None = None) -> None:
        """Write the report to files."""
        if html is not None:
            Path(html).write_text(self.to_html(), encoding="utf-8")
        if markdown is not None:
            Path(markdown).write_text(self.to_markdown(), encoding="utf-8")

    def __str__(self) -> str:
        return self.to_markdown()
