"""Seeing a model: `visualize` (at the top level) shows it in Netron, in the browser."""

from finetunelib.visualization._server import NetronServer
from finetunelib.visualization._visualize import visualize

__all__ = ["NetronServer"]

NetronServer.__module__ = __name__
visualize.__module__ = "finetunelib"
