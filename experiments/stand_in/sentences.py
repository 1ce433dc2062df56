"""Plain English sentences from a closed vocabulary of 521 words, to train and test a small language model for speech.

Sentences have 4 to 14 words and come from templates. Words are dealt like cards, so that all words of a class come
equally often. The result depends on split, count and seed alone. A sentence's hash decides its split (1 in 20 test, 1
in 20 dev), so no two splits share one, whatever the seeds.
"""

from __future__ import annotations

import hashlib
import random
import re
from itertools import pairwise

# class: words; and so on. A verb is base/past. Nouns are regular: their plural is made by rule.
_WORDS = """
name: Anna Tom Peter Maria John Lucy David Helen George Sophie Mark Julia Henry Rachel Simon Emma;
person: man woman boy girl doctor teacher farmer driver nurse baker singer artist soldier neighbor uncle aunt brother
  sister
  father mother friend student captain king queen;
animal: dog cat horse cow bird duck rabbit tiger snake monkey pig chicken;
thing: book cup key lamp chair table clock mirror letter picture bottle ladder blanket coat hat shirt shoe ring coin
  map camera
radio phone computer pencil paper ticket bag box bicycle guitar piano drum candle umbrella plate window treasure
  television;
food: bread cheese soup rice milk coffee tea sugar salt honey chocolate cake fruit meat fish;
place: house kitchen garden school church station market office library museum hospital hotel bridge river lake beach
  island
  mountain forest village city street corner airport field farm tower park theater shop;
color: red blue green yellow brown white black gray purple orange;
quality: old new small large heavy light broken clean dirty beautiful strange cheap round square wooden golden sharp
  soft;
mood: happy sad angry tired hungry young brave quiet careful lazy busy famous poor nervous proud gentle;
weather: cold warm hot wet dry dark windy lovely; number: two three four five six seven eight nine ten eleven twelve;
month: January February March April May June July August September October November December;
manner: slowly quickly quietly carefully suddenly finally happily easily together alone again;
vt: find/found carry/carried buy/bought sell/sold lose/lost hide/hid bring/brought take/took keep/kept drop/dropped
clean/cleaned fix/fixed watch/watched borrow/borrowed measure/measured choose/chose throw/threw paint/painted
  push/pushed
move/moved leave/left open/opened close/closed touch/touched need/needed want/wanted like/liked see/saw hold/held
  show/showed;
vp: meet/met help/helped thank/thanked follow/followed visit/visited call/called know/knew love/loved teach/taught
  trust/trusted
  hear/heard surprise/surprised join/joined remember/remembered;
vf: eat/ate cook/cooked taste/tasted share/shared enjoy/enjoyed order/ordered;
vm: walk/walked run/ran drive/drove travel/traveled ride/rode hurry/hurried swim/swam sail/sailed return/returned
  climb/climbed;
vi: sing/sang dance/danced sleep/slept laugh/laughed cry/cried wait/waited work/worked play/played talk/talked
  sit/sat;
day: Monday Tuesday Wednesday Thursday Friday Saturday Sunday; season: spring summer autumn winter; often: always
  never
often usually; in_place: in near behind beside outside inside; to_place: to toward across past around; on_thing: on
  under over
"""
_RULES = {  # the vertical bar separates alternatives
    "who": "{name}|{name}|the {person}|my {person}|the {mood} {person}|her {person}|our {person}|{pron}",
    "whom": "{name}|the {person}|my {person}|the {mood} {person}|his {person}|an old {person}",
    "pron": "I|you|he|she|we|they",
    "must": "must|can|should|will|could|might",
    "np": "the {thing}|the {color} {thing}|the {quality} {thing}|a {quality} {thing}|my {thing}|their {color} {thing}|"
    "{number} {thing.s}|some {quality} {thing.s}|a {color} {thing}|this {thing}|that {quality} {thing}",
    "eat": "the {food}|some {food}|more {food}|fresh {food}|the {food} and the {food}",
    "beast": "the {animal}|a {color} {animal}|the {mood} {animal}|{number} {animal.s}|our {animal}",
    "where": "{in_place} the {place}|at the {place}|{on_thing} the {thing}|{in_place} the {quality} {place}",
    "when": "yesterday|today|this morning|last night|last {day}|on {day}|in {month}|last {season}|before {day}|"
    "every {day}",
    "later": "tomorrow|tonight|next {day}|on {day} morning|in {month}|next {season}|soon|after lunch",
}
_TEMPLATES = """
{who} {vt.p} {np} {where}.|{who} {vt.p} {np} {when}.|{who} {manner} {vt.p} {np} {where}.|{who} {vf.p} {eat} {when}.
{who} and {name} {vf.p} {eat} {where}.|{name} {often} {vf.p} {eat} with {whom}.|{who} {vp.p} {whom} {where} {when}.
{who} {vp.p} {whom} because {pron} {vi.p} {manner}.|{name} {vp.p} {name} and {name} {when}.
{who} {vm.p} {to_place} the {place} {when}.|{who} {vm.p} {manner} {to_place} the {weather} {place}.
{name} and {name} {vm.p} from the {place} to the {place}.|{beast} {vm.p} {to_place} the {place} and {vi.p} {where}.
{who} {vi.p} {where} {when}.|{who} {vi.p} {manner} while the {person} {vi.p}.|{beast} {vi.p} {manner} {where}.
{when}, {who} {vt.p} {np} {where}.|{later}, {who} {must} {vm.b} to the {place}.
in {month}, the {place} was {weather} and {weather}.|did {who} {vt.b} {np} {when}?
did {name} {vm.b} to the {place} {when}?
did {whom} {vf.b} {eat} {when}?|where did {who} {vt.b} {np}?|why did {who} {vp.b} {whom} {when}?
when did {name} {vm.b} to the {place}?|who {vt.p} {np} {where}?|how many {thing.s} did {who} {vt.b} {when}?
which {thing} did {who} {vt.b} first?|can {name} {vt.b} {np} {later}?|will {who} {vp.b} {whom} {later}?
should {who} {vi.b} {where} {later}?|was the {place} {weather} {when}?|please {vt.b} {np} before {day}.
please do not {vt.b} {np} {later}!|never {vt.b} {np} without {whom}!|please {vi.b} {manner} {where}.
{who} {must} {vt.b} {np} {later}.|{who} {must} {vp.b} {whom} {later}.|{who} {must} {vf.b} {eat} {later}.
the {thing} {where} was {quality} and {color}.|the {color} {thing} was too {quality} for {whom}.
the {animal} was {mood}, so {who} {vp.p} the {person}.|the {place} was {weather}, so {who} {vm.p} to the {place}.
if the {season} is {weather}, {who} will {vm.b} to the {place}.
there were {number} {thing.s} and {number} {thing.s} {where}.
there was a {quality} {thing} {where} {when}.|there is no {food} {where}.|{name} said that {who} {vt.p} {np}.
I think that {who} {vt.p} {np} {when}.|{name} gave {whom} {np} and {np}.|{name} told {whom} about {np}.
nobody {vt.p} {np} {when}.|everybody {vp.p} {whom} at the {place}.|what a {weather} {day} it was {where}!
the {thing} cost {number} dollars at the {place}.|{name} was {mood}, {mood} and {mood} {when}.
there are many {animal.s} {where}.
the {animal.s} and the {animal.s} {vi.p} {where}.|do {animal.s} {often} {vi.b} {where}?
{who} {vt.p} {np} {where}, but {name} {vt.p} {np}.
{who} {vm.p} {to_place} the {place} and {vf.p} {eat} with {whom} {when}.
{name} {vt.p} {np} {where} because the {person} {vp.p} {whom}.
after {name} {vt.p} {np}, {pron} {vi.p} {manner} {where}.
{who} {vp.p} {whom}, {vt.p} {np} and {vm.p} to the {place}.|{when}, {beast} {vi.p} {where} and {who} {vt.p} {np}.
I {often} {vi.p} {where} in {season}.|we {often} {vm.p} {to_place} the {place} in {month}.
they {often} {vp.p} {whom} on {day}.
"""
TEMPLATES = [template for line in _TEMPLATES.strip().splitlines() for template in line.split("|")]
RULES = {name: text.split("|") for name, text in _RULES.items()}
WORDS = {name.strip(): words.split() for name, words in (entry.split(":") for entry in _WORDS.split(";"))}


def plural(noun: str) -> str:
    return noun + "es" if noun.endswith(("s", "x", "ch", "sh")) else re.sub("(?<=[^aeiou])y$", "ie", noun) + "s"


class Writer:
    """Fills templates; every list of words or alternatives is dealt out in full before it is shuffled anew."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.decks: dict[str, list[str]] = {}

    def deal(self, name: str, items: list[str]) -> str:
        if not self.decks.get(name):
            self.decks[name] = self.random.sample(items, len(items))
        return self.decks[name].pop()

    def slot(self, match: re.Match[str]) -> str:
        name, _, form = match[1].partition(".")
        if name in RULES:
            return self.deal(name, RULES[name])
        word = self.deal(name, WORDS[name])
        return plural(word) if form == "s" else word.split("/")[form == "p"]

    def sentence(self) -> str:
        text = self.deal("", TEMPLATES)
        while "{" in text:
            text = re.sub(r"\{([\w.]+)\}", self.slot, text)
        return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text[0].upper() + text[1:])


def split_of(sentence: str) -> str:
    return {0: "test", 1: "dev"}.get(hashlib.sha256(sentence.encode()).digest()[0] * 20 // 256, "train")


def sentences(split: str, count: int, seed: int = 0) -> list[str]:
    """`count` different sentences of one split ('train', 'dev' or 'test')."""
    writer = Writer(seed)
    out: dict[str, None] = {}
    while len(out) < count:
        text = writer.sentence()
        words = re.findall(r"[a-z]+", text.lower())
        if 4 <= len(words) <= 14 and all(a != b for a, b in pairwise(words)) and split_of(text) == split:
            out[text] = None
    return list(out)


def vocabulary() -> list[str]:
    text = " ".join([*TEMPLATES, *(a for v in RULES.values() for a in v)])
    words = set(re.findall(r"[a-z]+", re.sub(r"\{[\w.]+\}", " ", text).lower())) | {"an"}
    words |= {w.lower() for v in WORDS.values() for pair in v for w in pair.split("/")}
    return sorted(words | {plural(w) for k in ("thing", "animal") for w in WORDS[k]})
