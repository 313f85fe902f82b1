"""From YAML to a config: every refusal has the key's full name, what is allowed and what came."""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from parametrium.config.job import JobConfig
from parametrium.config.plain import read_plain
from parametrium.config.site import SiteConfig
from parametrium.config.values import Strict
from parametrium.errors import Code, ConfigError

_FILE = r"\.(nii|gz|csv|ya?ml|dcm|pt)$"
_LOOKS_LIKE_PATH = re.compile(rf"[/\\~]|^\.|{_FILE}", re.IGNORECASE)
# Of levels, synonyms and words for missing, which hospitals write with a slash (T1b/2, y/n, N/A): absolute, from home,
# a drive, a URL, hidden.
_WORD_IS_PATH = re.compile(rf"^\s*[/~]|\\|://|^\s*[A-Za-z]:([/\\]|\s*$)|(^\s*|/)\.|{_FILE}", re.IGNORECASE)
_WORD = re.compile(r"^job\.clinical\.\d+\.(levels|synonyms|missing)\.")

_Config = TypeVar("_Config", bound=Strict)


def load_job(path: Path) -> JobConfig:
    """Reads a job YAML.

    Raises:
        ConfigError: PM101 unreadable, PM102 unknown key, PM103 invalid value, PM104 a path in the job.
    """
    return parse_job(_read_yaml(path))


def parse_job(data: object) -> JobConfig:
    """Validates plain data (from YAML or JSON) as a job; raises as ``load_job``."""
    for key, value in _strings(data, "job"):
        looks = _WORD_IS_PATH if _WORD.match(key) else _LOOKS_LIKE_PATH
        if looks.search(value) and not key.endswith(".unit"):
            raise ConfigError(
                Code.CONFIG_PATH_IN_JOB,
                f"{key} looks like a path; a job travels to every site and holds none. Put it into the site config.",
                site_detail=repr(value),
            )
    return _parse(JobConfig, data, "job")


def load_site(path: Path) -> SiteConfig:
    """Reads a site YAML; its folders become absolute, relative ones counted from the file's own folder, ~ from home.

    Raises:
        ConfigError: PM101 unreadable, PM102 unknown key, PM103 invalid value.
    """
    site = _parse(SiteConfig, _read_yaml(path), "site")
    here = path.resolve().parent
    return site.model_copy(update={key: _folder(here, getattr(site, key)) for key in ("cohort", "cache", "state")})


def _folder(here: Path, written: str) -> str:
    """Absolute. Of names with a tilde, only ~ itself means somebody's home: a folder may be called ~old."""
    is_home = written == "~" or written.startswith("~/")
    return str(here / (Path.home() / written[2:] if is_home else written))


def job_schema() -> dict[str, Any]:
    """JSON schema of a job file, for editors."""
    return JobConfig.model_json_schema()


def site_schema() -> dict[str, Any]:
    """JSON schema of a site file, for editors."""
    return SiteConfig.model_json_schema()


def _read_yaml(path: Path) -> object:
    try:
        return read_plain(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(Code.CONFIG_UNREADABLE, "the config file is not there", site_detail=str(path)) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            Code.CONFIG_UNREADABLE, "the config file cannot be read as YAML", site_detail=f"{path}: {error}"
        ) from error


def _parse(model: type[_Config], data: object, root: str) -> _Config:
    # Through JSON: strict validation then takes YAML's lists as tuples, but never a string as a number.
    try:
        text = json.dumps(data)
    except (TypeError, ValueError) as error:
        raise ConfigError(Code.CONFIG_INVALID_VALUE, f"{root}: only plain YAML values are allowed") from error
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        found = error.errors()
        # A list whose only item failed is also reported as too short; that second report would mislead.
        causes = [problem for problem in found if problem["type"] != "too_short" or not _holds_another(problem, found)]
        problems = [_describe(model, problem, root) for problem in causes]
        unknown = any(problem["type"] == "extra_forbidden" for problem in causes)
        code = Code.CONFIG_UNKNOWN_KEY if unknown else Code.CONFIG_INVALID_VALUE
        # A site's own values may be paths or names of people, and this text may reach the server.
        public, whole = ("; ".join(problem.text(shown) for problem in problems) for shown in (root == "job", True))
        raise ConfigError(code, public, site_detail="" if public == whole else whole) from None


def _holds_another(problem: Any, problems: Sequence[Any]) -> bool:
    """Whether another problem lies within what this one is about."""
    place = problem["loc"]
    return any(other is not problem and other["loc"][: len(place)] == place for other in problems)


class _Problem(NamedTuple):
    """What is wrong with one key, in parts of which two show what was written.

    Attributes:
        place: the full name of what holds the key.
        key: its own name.
        is_known: whether the key's name is one of ours.
        message: what is wrong, and what is allowed.
        received: what came; empty where it says nothing.
    """

    place: str
    key: str
    is_known: bool
    message: str
    received: str = ""

    def text(self, shown: bool) -> str:
        """One sentence; with what was written, or without."""
        name = ".".join(filter(None, [self.place, self.key if shown or self.is_known else "<key>"]))
        return f"{name}{self.message}{self.received if shown else ''}"


def _describe(model: type[BaseModel], problem: Any, root: str) -> _Problem:
    """One pydantic error: the key's full name, the allowed, the received."""
    keys, owner = _resolve(model, problem["loc"])
    *above, key = [root, *keys]
    place, kind = ".".join(above), problem["type"]
    if kind == "extra_forbidden":
        fields = sorted(owner.model_fields)
        near = difflib.get_close_matches(keys[-1], fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(fields)}"
        return _Problem(place, key, False, f" is not a known key; {hint}")
    if kind == "missing":
        return _Problem(place, key, True, " is missing")
    message = problem["msg"].removeprefix("Value error, ")
    received, allowed = problem.get("input"), problem.get("ctx", {}).get("expected", "")
    if kind == "union_tag_invalid":  # of which the message holds what came
        received, allowed = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
        message = f"kind must be one of {allowed.replace(chr(39), '')}"
    near = difflib.get_close_matches(str(received), re.findall("'([^']*)'", allowed), n=1)
    message += f"; did you mean {near[0]!r}?" if near else ""
    if kind.startswith("bool") and str(received).lower() in ("yes", "no", "on", "off", "y", "n"):
        message += "; write true or false"
    shown = f", got {received!r}" if isinstance(received, str | int | float | bool | None) else ""
    return _Problem(place, key, True, f": {message[0].lower()}{message[1:]}", shown)


def _resolve(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel]]:
    """Splits an error location into key names (without union tags) and the model that owns the last key."""
    keys: list[str] = []
    owner, here = model, model
    annotation: Any = model
    for part in loc:
        choices = [m for m in _models(annotation) if "kind" in m.model_fields]
        tagged = [m for m in choices if m.model_fields["kind"].default == part]
        if tagged and len(choices) > 1:
            annotation = here = tagged[0]
            continue
        keys.append(str(part))
        candidates = _models(annotation)
        owner = here if here in candidates else (candidates[0] if candidates else here)
        if isinstance(part, str) and part in owner.model_fields:
            annotation = owner.model_fields[part].annotation
        here = (_models(annotation) or [here])[0]
    return keys, owner


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All config models inside a type annotation, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, None) and not get_args(annotation):
        return []
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """All strings in plain data, keys included, each with its full name."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield f"{key}.<key>", str(name)
            yield from _strings(item, f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{key}.{index}")
