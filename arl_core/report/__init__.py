"""The report of a campaign: one self-contained page, its figures, and the best program for review.

findings.py   what a campaign found, as plain data            source.py   reading it without blocking a writer
figures.py    the search: staircase, lineage, levers, time    evidence.py runs, forecasts, savings, learning, theory
words.py      sentences and numbers                           view.py     all that the page shows, in order
page.py       the page and its files                          export.py   --export-best
signs.py      signs that the figures are not what they seem   cautions.py what to know before believing the headline
"""

from arl_core.report.export import export_best
from arl_core.report.page import write_report
from arl_core.report.source import CampaignData, read

__all__ = ["CampaignData", "export_best", "read", "write_report"]
