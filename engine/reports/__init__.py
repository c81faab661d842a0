"""Sealed artifacts told in markdown. Reads files only; no torch."""
