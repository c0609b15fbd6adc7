"""The figure class of all plots. Imported late, because matplotlib is optional."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class SelfShowingFigure(Figure):
    """A figure that notebooks show as the last line of a cell, even if pyplot is not imported.

    IPython can show other figures only after pyplot is imported, and then handles these too.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return a PNG at twice the resolution, and the size in pixels at which to show it."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=2 * self.dpi)
        width, height = self.get_size_inches() * self.dpi
        return file.getvalue(), {"width": round(width), "height": round(height)}
