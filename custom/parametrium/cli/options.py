"""What several commands take, and the end of their help."""

from pathlib import Path
from typing import Annotated

import typer

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="the job")]
SiteFile = Annotated[Path, typer.Argument(metavar="SITE.yaml", help="the site config")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]


def example(*lines: str) -> str:
    """The end of a command's help; never wrapped (backspace is click's mark for that), so that it can be copied."""
    return "\b\nExample:\n" + "\n".join(f"  parametrium {line}" for line in lines)
