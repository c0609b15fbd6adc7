"""Seeing models and trainings: a table of layers, plots of histories and predictions.

`visualize` (at the top level) shows a model in Netron. Names are imported when first used.
"""

from typing import TYPE_CHECKING

from finetunelib._lazy import lazily

if TYPE_CHECKING:
    from finetunelib.visualization._plot_confusion import plot_confusion
    from finetunelib.visualization._plot_history import plot_history
    from finetunelib.visualization._plot_predictions import plot_predictions
    from finetunelib.visualization._server import NetronServer
    from finetunelib.visualization._summary import Summary, summary
    from finetunelib.visualization._summary_rows import SummaryRow

__all__ = [
    "NetronServer",
    "Summary",
    "SummaryRow",
    "plot_confusion",
    "plot_history",
    "plot_predictions",
    "summary",
]

if not TYPE_CHECKING:  # A checker is to see the names above, and no others.
    __getattr__, __dir__ = lazily(
        __name__,
        globals(),
        {
            "NetronServer": "_server",
            "Summary": "_summary",
            "SummaryRow": "_summary_rows",
            "plot_confusion": "_plot_confusion",
            "plot_history": "_plot_history",
            "plot_predictions": "_plot_predictions",
            "summary": "_summary",
        },
    )
