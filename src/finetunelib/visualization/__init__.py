"""Seeing a model: a table of its layers; `visualize` (at the top level) shows it in Netron."""

from finetunelib.visualization._server import NetronServer
from finetunelib.visualization._summary import Summary, summary
from finetunelib.visualization._summary_rows import SummaryRow
from finetunelib.visualization._visualize import visualize

__all__ = ["NetronServer", "Summary", "SummaryRow", "summary"]

for _public in (NetronServer, Summary, SummaryRow, summary):
    _public.__module__ = __name__
visualize.__module__ = "finetunelib"
