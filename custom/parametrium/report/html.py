"""Pages from the templates of ``report/templates``, and files that are in place at once."""

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **parts: Any) -> str:
    """The text of a template by its name; what it is given is escaped, and what it lacks is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**parts)


def write_at_once(path: Path, content: bytes, private: bool) -> Path:
    """Writes a file in one step, so that no half of it is ever read.

    Args:
        path: the file.
        content: of the file.
        private: whether it is readable by its owner alone, because it shows patients.

    Returns:
        The file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o644), "wb") as file:
        file.write(content)
    return partial.replace(path)
