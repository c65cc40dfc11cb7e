"""Reading YAML the way people mean it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hf_dbmtl_cli import CommandError


__all__ = ["load_yaml", "parse_yaml"]


class _Loader(yaml.SafeLoader):
    """
    The scalars of YAML 1.2: `2e-5` is a number, `no` and `on` are words (`eval_strategy: no`, `label_names: [no,
    yes]`), a date or `1:30` is text. PyYAML reads YAML 1.1, where none of this holds. A key that is there twice, of
    which PyYAML would take the last, is refused.
    """

    yaml_implicit_resolvers: dict[str | None, list] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is there twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), None)
# SafeLoader would read `010` as octal and stumble over `08`
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))


def parse_yaml(text: str) -> Any:
    """
    The value that a text in YAML (or JSON) stands for.

    Raises:
        `yaml.YAMLError`: where it is not YAML.
    """
    return yaml.load(text, _Loader)


def load_yaml(path: str) -> dict[str, Any]:
    """
    The mapping that a file holds.

    Raises:
        [`CommandError`]: the file cannot be read, is not YAML, or holds something else.
    """
    try:
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{path}: the file cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: this is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise CommandError(f"{path}: the file must hold settings such as 'learning_rate: 2e-5', one per line.")
    return content
