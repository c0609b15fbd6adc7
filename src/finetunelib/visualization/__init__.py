"""Model summaries, plots of training runs and predictions, and the Netron viewer.

`finetunelib.visualize` opens a model in Netron. Names are imported when first used.
"""

from typing import TYPE_CHECKING

from finetunelib._public import lazily

if TYPE_CHECKING:
    from finetunelib.visualization._netron.server import NetronServer
    from finetunelib.visualization._plots.confusion import plot_confusion
    from finetunelib.visualization._plots.history import plot_history
    from finetunelib.visualization._plots.lr_finder import plot_lr_finder
    from finetunelib.visualization._plots.predictions import plot_predictions
    from finetunelib.visualization._summary.rows import SummaryRow
    from finetunelib.visualization._summary.table import Summary, summary

__all__ = [
    "NetronServer",
    "Summary",
    "SummaryRow",
    "plot_confusion",
    "plot_history",
    "plot_lr_finder",
    "plot_predictions",
    "summary",
]

if not TYPE_CHECKING:  # Type checkers use the imports above.
    __getattr__, __dir__ = lazily(
        __name__,
        globals(),
        {
            "NetronServer": "_netron.server",
            "Summary": "_summary.table",
            "SummaryRow": "_summary.rows",
            "plot_confusion": "_plots.confusion",
            "plot_history": "_plots.history",
            "plot_lr_finder": "_plots.lr_finder",
            "plot_predictions": "_plots.predictions",
            "summary": "_summary.table",
        },
    )
