"""YAML as its version 1.2 reads it, without what surprises: yes and no are words, 010 is ten, 1e-3 is a number.

PyYAML reads version 1.1, where ``no: negative`` has the key False and ``1e-3`` is text. Also refused is what YAML
permits and a setting should not do: a key that is given twice, of which the last would count; keys that are no text;
and references (``*name``), which let a few lines stand for any number.
"""

import re
from typing import Any

import yaml

from parametrium.errors import Code, ConfigError


def read_plain(text: str) -> object:
    """The dicts, lists, texts, numbers, truth values and None of a YAML document.

    Raises:
        ConfigError: PM101 with the line for a key that is repeated or no text, or for a reference; without it for
            nesting without end and a value that is not what its tag says.
        yaml.YAMLError: it is no YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader, with fewer types than the usual one
    except RecursionError:
        raise ConfigError(Code.CONFIG_UNREADABLE, "the config is nested too deep") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # tags (!!int x) fail as they like
        message = "the config holds a value that is not what its tag says, or a number beyond all measure"
        raise ConfigError(Code.CONFIG_UNREADABLE, message, site_detail=str(error)) from None


def write_plain(data: object) -> str:
    """YAML that ``read_plain`` and a reader of version 1.1 take for the same; keys in their order."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False))


class _Loader(yaml.SafeLoader):
    """SafeLoader with the types of YAML 1.2's core schema but 0o17 and 0x1F, and keys that are texts, given once."""

    peek_event: Any  # has no types

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _refused(self.peek_event(), "a reference (*name) is not read; write out what it stands for")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep)
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refused(key_node, "a key is a text; put it in quotes")
            if key in seen:
                raise _refused(key_node, "this key is given a second time; keep one", key)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _refused(place: Any, reason: str, detail: str = "") -> ConfigError:
    return ConfigError(
        Code.CONFIG_UNREADABLE, f"line {place.start_mark.line + 1} of the config: {reason}", site_detail=detail
    )


def _integer(_: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not take for text, and writes no reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    for _user in (_Loader, _Dumper):
        _user.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), [*_first, ""])
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
