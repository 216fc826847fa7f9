"""Figures that a notebook shows, whichever backend matplotlib has there."""

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure on no screen, known to no global list, that a notebook shows as a picture."""

    def _repr_png_(self) -> bytes:
        from clipbias.report.style import png_bytes

        return png_bytes(self, dpi=130)
