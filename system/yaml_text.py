"""YAML as text: every value stays what the user typed. With YAML's own types 2026 would be a number, and 2026-03-01 a
date. Aliases (`*name`) and deep nesting are refused: with them a short text can describe a huge value."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from system.names import printable

DEEPEST = 8  # levels; settings have four
EMPTY = ("", "~", "null", "Null", "NULL")


def parse_yaml_text(text: str, deepest: int = DEEPEST) -> Any:
    """The content of a YAML text: lists and sections of texts, and None for what is empty or `null`. Raises ValueError,
    with a reason in one line, if it is not valid YAML, has aliases or a key twice, or has more than `deepest`
    levels."""
    try:
        loader = _TextLoader(text)
        loader.deepest = deepest
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{error.problem}{place}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two from characters that do not exist
        raise ValueError(" ".join(str(error).split())) from error


class _TextLoader(yaml.BaseLoader):
    """Leaves every scalar as text, but a plain empty one or `null`, which is None. Raises YAMLError for aliases, keys
    that are there twice, and more than `deepest` levels."""

    depth, deepest = 0, DEEPEST

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _problem("aliases (*name) are not supported: write the value out", self.peek_event().start_mark)
        self.depth += 1
        if self.depth > self.deepest:
            raise _problem(f"more than {self.deepest} levels", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        text = super().construct_scalar(node)
        return None if node.style is None and text in EMPTY else text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        values: dict[Hashable, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key is a list or a section, expected a word", key.start_mark)
            if key.value in values:
                raise _problem(f"the key {printable(key.value[:100])!r} is there twice", key.start_mark)
            values[key.value] = self.construct_object(value, deep=True)
        return values


def _problem(text: str, mark: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=mark)
