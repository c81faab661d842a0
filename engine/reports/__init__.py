"""Sealed artifacts told in markdown. Reads files only; no torch."""

from engine.reports.headlines import headline
from engine.reports.stages import stage_report

__all__ = ["headline", "stage_report"]
