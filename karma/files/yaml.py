"""The one reader of YAML: safe, of bounded size, and with keys that are text and stand once.

Decision: a document's nodes are counted, aliases written out, before anything is built of them: YAML that names itself,
or that multiplies, costs nothing.
"""

from pathlib import Path
from typing import Any

import yaml

from karma.errors import InputError, quote, show_line
from karma.files.reading import parse_int, read_text

_MOST_NODES = 100_000  # of a YAML file with its aliases written out; ours have some hundred


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML carries no types
    """A safe loader of whole numbers that fit 64 bits."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return parse_int(str(super().construct_yaml_int(node)))


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """Parse one YAML document; whatever cannot be used is a ValueError of one line.

    Raises:
        ValueError: no YAML, nested too deep, a value within itself, aliases that multiply beyond all measure, a key
            that is no text or stands twice, or a whole number beyond 64 bits.

    Example:
        >>> parse_yaml("a: &a {b: *a}")
        Traceback (most recent call last):
        ValueError: line 1: a value within itself: write it out without the alias
        >>> parse_yaml("2024-01-01: 1")
        Traceback (most recent call last):
        ValueError: line 1: key '2024-01-01' is no text: put it in quotes
    """
    loader = None
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{show_line(error.problem or error.context)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(show_line(error)) from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    finally:
        if loader is not None:
            loader.dispose()


def _count_nodes(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return how many nodes there are with aliases written out; raise where there would be too many."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    line = f"line {node.start_mark.line + 1}"
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ValueError(f"{line}: a value within itself: write it out without the alias")
        return size
    known[id(node)] = None
    inside = node.value
    if isinstance(node, yaml.MappingNode):
        keys = [key for key, _ in node.value]
        for key in keys:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                shown = quote(key.value) if isinstance(key, yaml.ScalarNode) else "a list or map"
                raise ValueError(f"line {key.start_mark.line + 1}: key {shown} is no text: put it in quotes")
        names = [key.value for key in keys]
        if len(set(names)) < len(names):
            raise ValueError(f"{line}: key {quote(next(n for n in names if names.count(n) > 1))} is given twice")
        inside = [value for _, value in node.value]
    size = 1
    for one in inside:
        size += _count_nodes(one, known)
        if size > _MOST_NODES:
            raise ValueError(f"{line}: more than {_MOST_NODES:,} values with its aliases written out")
    known[id(node)] = size
    return size


def load_yaml(path: str | Path, what: str = "") -> Any:
    """Read a YAML file; an absent or broken one is an InputError that names it."""
    text = read_text(path, what)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{what} {Path(path).name} is not valid YAML: {error}".lstrip()) from None
