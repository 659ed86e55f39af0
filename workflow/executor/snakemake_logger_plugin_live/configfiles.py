"""Faults in the values of `--configfile` and `--config`, which Snakemake reads before the workflow can check them."""

from __future__ import annotations

import re
from contextlib import redirect_stderr, suppress
from io import StringIO

# In Snakemake's messages about a configuration file that is missing, is not text, is not YAML, or is no mapping.
FILES = ("load_configfile", "Config file is not valid", "Config file must be given")
# Its message about `--config`, after a traceback.
CHANGES = re.compile(r"ValueError: Invalid config definition: (.*)")


def explain(message: str) -> str | None:
    """Return one sentence that replaces an error message of Snakemake about the configuration of this command line.

    It names the file and the line. Return None for a message about something else.
    """
    if found := CHANGES.search(message):
        return f"error: --config: {found[1]} For example --config seeds=[0,1,2] 'learning={{common: {{steps: 9}}}}'"
    if not any(sign in message for sign in FILES):
        return None
    # Imported here because only this message needs them.
    from snakemake.cli import parse_args

    from patch.errors import InputError
    from patch.files.plain import read_yaml

    arguments = None
    with redirect_stderr(StringIO()), suppress(SystemExit):  # a line on the profile that is used
        _, arguments = parse_args(None)
    for path in (arguments and arguments.configfile) or []:
        try:
            read_yaml(path)
        except InputError as error:
            hint = "" if path.exists() else "; several files may follow --configfile, so write targets before it"
            return f"error: {error}{hint}"
    return None
