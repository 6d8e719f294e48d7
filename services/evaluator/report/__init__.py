"""The report of a run: one HTML file, CSV tables, and the same figures for the terminal."""

from services.evaluator.report.page import render

__all__ = ["render"]
