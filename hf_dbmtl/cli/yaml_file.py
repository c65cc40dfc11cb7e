"""Reading YAML the way people mean it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from hf_dbmtl_cli import CommandError


__all__ = ["load_yaml", "parse_yaml"]

MAX_BYTES = 1 << 20  # a file of settings has a few hundred lines
MAX_NODES = 100_000  # with every alias written out
MAX_DEPTH = 50
SHOWN = 1000  # letters of an error of PyYAML, which quotes the file


class _Loader(yaml.SafeLoader):
    """
    The scalars of YAML 1.2: `2e-5` is a number, `no` and `on` are words (`eval_strategy: no`, `label_names: [no,
    yes]`), a date or `1:30` is text. PyYAML reads YAML 1.1, where none of this holds. A key that is there twice, of
    which PyYAML would take the last, is refused.
    """

    yaml_implicit_resolvers: dict[str | None, list] = {}
    nodes = depth = 0  # read so far; how deep in

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        _limit(self.nodes, self.depth, self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word or a number", key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


for _tag, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), None)
# SafeLoader would read `010` as octal and stumble over `08`
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def parse_yaml(text: str) -> Any:
    """
    The value that a text in YAML (or JSON) stands for.

    Raises:
        `yaml.YAMLError`: where it is not YAML.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return loader.construct_document(node)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # on `!!int x` and its like
        raise yaml.YAMLError(f"a value cannot be read ({_short(error)})") from error
    finally:
        loader.dispose()


def _measure(
    node: yaml.Node, known: dict[int, tuple[int, int]], inside: frozenset[int] = frozenset()
) -> tuple[int, int]:
    """How many nodes there are in one and how deep they lie, each alias counted as what it stands for."""
    if id(node) in inside:
        raise yaml.composer.ComposerError(None, None, "an alias stands within what it stands for", node.start_mark)
    if id(node) not in known:
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        flat = [part for pair in children for part in (pair if isinstance(pair, tuple) else (pair,))]
        measured = [_measure(one, known, inside | {id(node)}) for one in flat]
        known[id(node)] = 1 + sum(count for count, _ in measured), 1 + max((depth for _, depth in measured), default=0)
        _limit(*known[id(node)], node.start_mark)
    return known[id(node)]


def _limit(count: int, depth: int, mark: yaml.Mark) -> None:
    if count > MAX_NODES:
        raise yaml.composer.ComposerError(
            None, None, f"it holds more than {MAX_NODES} values, aliases written out", mark
        )
    if depth > MAX_DEPTH:
        raise yaml.composer.ComposerError(None, None, f"it is nested more than {MAX_DEPTH} deep", mark)


def load_yaml(path: str) -> dict[str, Any]:
    """
    The mapping that a file holds.

    Raises:
        [`CommandError`]: the file cannot be read, is not YAML, or holds something else.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise CommandError(f"{path}: the file is larger than {MAX_BYTES >> 20} MiB: it holds no settings.")
        content = parse_yaml(text.decode("utf-8"))
    except OSError as error:
        raise CommandError(f"{path}: the file cannot be read: {error.strerror}.") from error
    except ValueError as error:  # of the path, which holds a NUL; a UnicodeDecodeError is one too
        raise CommandError(f"{path!r}: this is not YAML: {_short(error)}.") from error
    except yaml.YAMLError as error:
        raise CommandError(f"{path}: this is not YAML: {_short(error)}.") from error
    if not isinstance(content, dict):
        raise CommandError(f"{path}: the file must hold settings such as 'learning_rate: 2e-5', one per line.")
    return content


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
