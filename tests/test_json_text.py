"""Editing JSON as text gives the same as parsing, changing and writing it, in every layout; removing restores it."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import pytest

from release.json_text import with_entry, without_entry

LAYOUTS: list[dict[str, Any]] = [{}, {"indent": 2}, {"indent": 4}, {"indent": "\t"}, {"separators": (",", ":")}]
CONTENT = {"vocab": [{"a": '}"é\u1234'}, 2.50], "audio": {"rate": 1e6, "counts": {"x": 3}, "none": {}}, "end": None}
ENTRIES: list[tuple[tuple[str, ...], Any]] = [
    (("audio", "counts", "new"), 7),
    (("audio", "none", "new"), 7),
    (("audio", "counts", 'quo"ted é'), 7),
    (("top",), {"list": [1, 2], "inner": {"deep": {}}}),
]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("path", "value"), ENTRIES)
def test_an_entry_put_in_is_as_if_written_by_json_and_leaves_nothing_when_taken_out(
    path: tuple[str, ...], value: object, layout: dict[str, Any], line_end: str
) -> None:
    text = json.dumps(CONTENT, **layout).replace("\n", line_end) + line_end
    changed = json.loads(text)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    edited = with_entry(text, path, value)
    assert edited == json.dumps(changed, **layout).replace("\n", line_end) + line_end
    assert without_entry(edited, path) == text


def test_an_exchanged_value_leaves_the_rest_even_where_json_would_write_it_otherwise() -> None:
    text = '{ "a":1.50 ,\n"b" : {"c":\t"\\u00e9"}}'
    assert with_entry(text, ("b", "c"), 2) == '{ "a":1.50 ,\n"b" : {"c":\t2}}'


def test_any_one_of_several_entries_can_be_taken_out() -> None:
    dice = random.Random(0)
    for _ in range(50):
        content = {name: dice.random() for name in dice.sample(string.ascii_letters, 4)}
        gone = dice.choice(list(content))
        text = json.dumps({"outer": content}, **dice.choice(LAYOUTS))
        assert json.loads(without_entry(text, ("outer", gone)))["outer"] == {
            name: value for name, value in content.items() if name != gone
        }


@pytest.mark.parametrize("text", ["[1]", "", '{"audio": 3}', '{"audio": null}', '{"audio"', "{}"])
def test_what_has_no_such_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|no 'audio'"):
        with_entry(text, ("audio", "x"), 1)
