"""The languages that Whisper knows, by the names that corpora give them."""

from __future__ import annotations

from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

OTHER_CODES = {"cmn": "zh", "fil": "tl", "iw": "he", "jv": "jw", "nb": "no"}  # Whisper's code is the second one


def whisper_language(name: str) -> str | None:
    """Whisper's code for a language that is written as `de`, `de-DE`, `DE` or `German`. None if it has none."""
    text = name.strip().lower().replace("_", "-")
    for part in (text, text.split("-")[0]):
        code = OTHER_CODES.get(part) or TO_LANGUAGE_CODE.get(part, part)
        if code in LANGUAGES:
            return str(code)
    return None
