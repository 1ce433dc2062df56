"""Edits JSON as text: adds, replaces or removes one entry and leaves every other byte as it is.

A tokenizer is 15 to 19 MB of JSON in a layout of its own. Parsing and writing it would change all of it. Edited here,
adding an entry and removing it again gives the old file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Member:
    """Where an object's member is in the text: begin and end of its key and of its value."""

    key: int
    key_end: int
    value: int
    end: int


def members(text: str, start: int) -> dict[str, Member]:
    """The members of the object whose opening brace is at `start`. Raises ValueError if there is no valid object."""
    found: dict[str, Member] = {}
    at = _skip(text, _expect(text, start, "{"))
    if text[at : at + 1] == "}":
        return found
    while True:
        key = at
        _expect(text, key, '"')
        name, key_end = _DECODER.raw_decode(text, key)
        value = _skip(text, _expect(text, _skip(text, key_end), ":"))
        _, end = _DECODER.raw_decode(text, value)
        found[name] = Member(key, key_end, value, end)
        at = _skip(text, end)
        if text[at : at + 1] == "}":
            return found
        at = _skip(text, _expect(text, at, ","))


def with_entry(text: str, path: Sequence[str], value: Any) -> str:
    """Sets `path` to `value`. An existing value is replaced; a new one becomes the last member, in the file's layout.
    Raises ValueError if the text or anything along the path is no object."""
    start, depth = _parent(text, path)
    there = members(text, start)
    if path[-1] in there:
        member = there[path[-1]]
        return text[: member.value] + _rendered(text, value, depth) + text[member.end :]
    newline, unit, comma, colon = _layout(text)
    entry = json.dumps(path[-1]) + colon + _rendered(text, value, depth)
    if not there:
        close = _skip(text, start + 1)
        opened, closed = (newline + unit * depth, newline + unit * (depth - 1)) if newline else ("", "")
        return text[: start + 1] + opened + entry + closed + text[close:]
    ordered = list(there.values())
    last, lead = ordered[-1], text[start + 1 : ordered[0].key]
    between = text[ordered[-2].end : last.key] if len(ordered) > 1 else "," + lead if lead else comma
    return text[: last.end] + between + entry + text[last.end :]


def without_entry(text: str, path: Sequence[str]) -> str:
    """The text without the member at `path`, unchanged if there is none. Raises ValueError as `with_entry` does."""
    start, _ = _parent(text, path)
    there = members(text, start)
    if path[-1] not in there:
        return text
    names = list(there)
    place = names.index(path[-1])
    member = there[path[-1]]
    if len(names) == 1:
        return text[: start + 1] + text[_skip(text, member.end) :]
    if place == 0:
        return text[: member.key] + text[there[names[1]].key :]
    return text[: there[names[place - 1]].end] + text[member.end :]


def _parent(text: str, path: Sequence[str]) -> tuple[int, int]:
    """Where the object begins that holds the last key of `path`, and how deep its members are nested."""
    start = _skip(text, 0)
    for key in path[:-1]:
        found = members(text, start)
        if key not in found:
            raise ValueError(f"there is no {key!r}")
        start = found[key].value
    return start, len(path)


def _layout(text: str) -> tuple[str, str, str, str]:
    """Line break, indentation, comma and colon of the file's outermost object. The line break is empty if everything is
    on one line."""
    start = _skip(text, 0)
    ordered = list(members(text, start).values())
    if not ordered:
        return "", "", ", ", ": "
    lead = text[start + 1 : ordered[0].key]
    newline = "\r\n" if "\r\n" in lead else "\n" if "\n" in lead else ""
    comma = text[ordered[0].end : ordered[1].key] if len(ordered) > 1 else ", "
    return newline, lead.rpartition("\n")[2] if newline else "", comma, text[ordered[0].key_end : ordered[0].value]


def _rendered(text: str, value: Any, depth: int) -> str:
    newline, unit, comma, colon = _layout(text)
    if not newline:
        return json.dumps(value, separators=(comma, colon))
    return json.dumps(value, indent=unit, separators=(",", colon)).replace("\n", newline + unit * depth)


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\n", "\r"):
        at += 1
    return at


def _expect(text: str, at: int, character: str) -> int:
    if text[at : at + 1] != character:
        raise ValueError(f"expected {character!r} at character {at}")
    return at + 1
