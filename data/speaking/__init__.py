"""A language model speaks pairs of codes and text; `speak_pairs.py` is the command.

plan.py              which text is spoken in which voice, as a function of a number
texts_and_voices.py  texts, a release's voices, and clips that lend theirs
engine.py            the server's own language model, without the server
faults.py            whether what it spoke is speech
words.py             whether it has the text's words
processes.py         several engines at once, and what they report
"""

from data.speaking.faults import REASONS, fault
from data.speaking.plan import Job, Plan, Task
from data.speaking.texts_and_voices import choose_voices, prompt_of, read_texts

__all__ = ["REASONS", "Job", "Plan", "Task", "choose_voices", "fault", "prompt_of", "read_texts"]
