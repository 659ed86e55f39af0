"""Figure functions; each returns a matplotlib figure that `save` writes as SVG, PDF and PNG."""

from patch.pipeline.reporting.curves import curves
from patch.pipeline.reporting.density import density
from patch.pipeline.reporting.pareto import pareto
from patch.pipeline.reporting.speedup import speedup
from patch.pipeline.reporting.style import save

__all__ = ["curves", "density", "pareto", "save", "speedup"]
