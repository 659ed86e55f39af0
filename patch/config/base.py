"""What every section of the configuration has in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen section that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def model_dump_json(self, **options: Any) -> str:
        """Return JSON with `<` as an escape: Snakemake's report holds parameters of rules in a script of the page."""
        return super().model_dump_json(**options).replace("<", "\\u003c")
