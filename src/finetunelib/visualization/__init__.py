"""Seeing models and trainings: a table of layers, plots of histories and predictions.

`visualize` (at the top level) shows a model in Netron.
"""

from finetunelib.visualization._plot_confusion import plot_confusion
from finetunelib.visualization._plot_history import plot_history
from finetunelib.visualization._plot_predictions import plot_predictions
from finetunelib.visualization._server import NetronServer
from finetunelib.visualization._summary import Summary, summary
from finetunelib.visualization._summary_rows import SummaryRow
from finetunelib.visualization._visualize import visualize

__all__ = [
    "NetronServer",
    "Summary",
    "SummaryRow",
    "plot_confusion",
    "plot_history",
    "plot_predictions",
    "summary",
]

for _public in (
    NetronServer,
    Summary,
    SummaryRow,
    plot_confusion,
    plot_history,
    plot_predictions,
    summary,
):
    _public.__module__ = __name__
visualize.__module__ = "finetunelib"
