"""The figure that pictures are drawn on. Imported late, since matplotlib is an extra."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class SelfShowingFigure(Figure):
    """A figure that notebooks show as the last line of a cell, also where pyplot was not imported.

    IPython learns how to show matplotlib's figures when pyplot is imported, which is not done
    here; where it has learned it, its own way is taken.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return a picture of twice the resolution, and the size that it is to be shown in."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=2 * self.dpi)
        width, height = self.get_size_inches() * self.dpi
        return file.getvalue(), {"width": round(width), "height": round(height)}
