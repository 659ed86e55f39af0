"""The function of SLiM's `utils.model` that the quick start imports."""

from patch.utils import get_llm

__all__ = ["get_llm"]
