"""The report: a run directory -> one self-contained page and one terminal table. No models, no torch."""

from xft.report.collect import collect
from xft.report.contents import Report
from xft.report.render import render, write_report
from xft.report.table import score_table, verdict

__all__ = ["Report", "collect", "render", "score_table", "verdict", "write_report"]
