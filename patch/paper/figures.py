"""The figures; each makes a matplotlib figure that `save` writes as SVG, PDF and PNG."""

from patch.paper.curves import curves
from patch.paper.density import density
from patch.paper.pareto import pareto
from patch.paper.speedup import speedup
from patch.paper.style import save

__all__ = ["curves", "density", "pareto", "save", "speedup"]
