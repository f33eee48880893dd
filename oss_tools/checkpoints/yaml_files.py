"""YAML from people and strangers: plain values only, with limits that hold after aliases and merge keys are expanded.

An alias costs a few bytes and stands for all that its anchor holds, so that 200 bytes of nested aliases are a billion values
to whoever walks through them. Here the values are counted as they will be walked, while the text is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from oss_tools.checkpoints.files import read_text
from oss_tools.errors import BadCheckpoint, OssToolsError

MAX_BYTES = 1 << 20  # of a file
MAX_VALUES = 50_000  # with every alias expanded
MAX_DEPTH = 64  # of lists and mappings in each other
MAX_DIGITS = 40  # of a number


def read_yaml(path: Path, error: type[OssToolsError] = BadCheckpoint, limit: int = MAX_BYTES) -> Any:
    """What a YAML file of at most `limit` bytes holds. Raises `error`, in a line that names the file and the line in it."""
    return _of_file(path, error, limit, lambda text: parse_yaml(text))


def check_yaml(path: Path, error: type[OssToolsError] = BadCheckpoint, limit: int = MAX_BYTES) -> None:
    """Holds a file against these limits that another program will read, with tags of its own. Raises `error`."""
    _of_file(path, error, limit, lambda text: _parsed(text, _Loader, "get_single_node"))


def parse_yaml(text: str, *, texts_only: bool = False) -> Any:
    """What YAML holds. Raises ValueError, in a line that says where.

    `texts_only`: every value that is no list or mapping is a text, as it is written.
    """
    return _parsed(text, _TextLoader if texts_only else _Loader, "get_single_data")


def _of_file(path: Path, error: type[OssToolsError], limit: int, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(read_text(path, limit))
    except BadCheckpoint as problem:
        raise error(str(problem)) from None
    except ValueError as problem:
        raise error(f"{path}: cannot be read, it is no YAML that is accepted: {problem}") from None


def _parsed(text: str, loader: type[yaml.SafeLoader] | type[yaml.BaseLoader], what: str) -> Any:
    try:
        return getattr(loader(text), what)()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(place + " ".join(str(error.problem or error.context).split())) from None
    except yaml.YAMLError as error:  # a character that YAML has not
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _Counted(yaml.composer.Composer):
    """Composes nodes and counts them as often as they are referred to."""

    def __init__(self, text: str) -> None:
        super().__init__(text)  # type: ignore[call-arg]  # the loader's
        self._values, self._depth = 0, 0
        self._whole: dict[int, tuple[int, int]] = {}  # id of a node that is complete -> its values, its depth

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[attr-defined]
        before, self._values, self._depth = self._values, self._values + 1, self._depth + 1
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._whole:
                raise _problem(event, f"the alias *{event.anchor} stands within what it names")
            values, depth = self._whole[id(node)]
            self._values += values - 1
        else:
            self._check(event, 0)
            node = super().compose_node(parent, index)
            values, depth = self._values - before, self._height(node)
            self._whole[id(node)] = values, depth
        self._check(event, depth - 1)
        self._depth -= 1
        return node

    def _height(self, node: yaml.Node | None) -> int:
        """Lists and mappings in each other, from a node whose parts are complete."""
        if isinstance(node, yaml.SequenceNode):
            return 1 + max((self._whole[id(part)][1] for part in node.value), default=0)
        if isinstance(node, yaml.MappingNode):
            return 1 + max((self._whole[id(part)][1] for pair in node.value for part in pair), default=0)
        return 1

    def _check(self, event: yaml.Event, below: int) -> None:
        if self._values > MAX_VALUES:
            raise _problem(event, f"more than {MAX_VALUES} values, aliases expanded")
        if self._depth + below > MAX_DEPTH:
            raise _problem(event, f"more than {MAX_DEPTH} lists and mappings in each other")


class _Loader(_Counted, yaml.SafeLoader):
    """Values as YAML 1.1 has them, without those that are taken for others or cost more than they say."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:  # `!!int x`, 2020-13-45
            what = "half a surrogate pair" if isinstance(error, UnicodeError) else "no such value"
            raise _problem(node, f"{what}: {str(node.value)[:40]!r}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        _no_key_twice(node)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = str(node.value)
        if ":" in text:
            raise _problem(node, f"{text[:40]!r} is a number to the base 60 in YAML; write it in quotes")
        if len(text) > MAX_DIGITS:
            raise _problem(node, f"a number of {len(text)} digits")
        if node.tag.endswith(":int"):
            return int(self.construct_yaml_int(node))
        value = float(self.construct_yaml_float(node))
        if math.isinf(value) and not re.fullmatch(r"[-+]?\.inf", text, re.IGNORECASE):
            raise _problem(node, f"{text!r} is larger than any number here")
        return value

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        text.encode()  # half a surrogate pair, which only an escape can express
        return text


class _TextLoader(_Counted, yaml.BaseLoader):
    """Texts, and lists and mappings of them."""


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)


def _no_key_twice(node: yaml.Node) -> None:
    """Raises if a mapping names a key twice; what a merge key brings in may be named again."""
    seen = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if (key.tag, key.value) in seen:
                raise _problem(key, f"the key {str(key.value)[:40]!r} occurs twice")
            seen.add((key.tag, key.value))


def _problem(where: yaml.Event | yaml.Node, what: str) -> yaml.MarkedYAMLError:
    mark: Any = where.start_mark
    return yaml.constructor.ConstructorError(None, None, what, mark)
