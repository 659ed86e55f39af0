"""What every section of the configuration has in common."""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

# In a text of JSON: the brackets of JSON itself stand before a quote or each other.
_READ_BY_SNAKEMAKE = re.compile(r'<|\{(?=[^"}\n])')


class Section(BaseModel):
    """A frozen section that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def model_dump_json(self, **options: Any) -> str:
        """Return JSON with escapes in the place of `<` and of a `{` in texts.

        Snakemake puts values of wildcards in the place of names in braces, and its report holds the parameters of
        rules in a script of the page.
        """
        text = super().model_dump_json(**options)
        return _READ_BY_SNAKEMAKE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
