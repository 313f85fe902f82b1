"""Writes a page from a template of ``report/templates``: offline, without a script."""

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def write_html(path: Path, template: str, private: bool, **parts: Any) -> Path:
    """Renders the template and puts the page in place at once, so that no half of it is ever read.

    Args:
        path: the page.
        template: name of the template; what it is given is escaped.
        private: whether the page is readable by its owner alone, because it shows patients.
        parts: what the template names.

    Returns:
        The page.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**parts)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o644)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return partial.replace(path)
