"""Whether speech has the words of its text, by Whisper."""

from __future__ import annotations

from torch import Tensor

from codec.checkpoint import load_release
from data.speaking.plan import Task
from system.command import UserError
from system.device import open_device


class WordJudge:
    """Decodes speech and lets Whisper write it down. Raises UserError without a package or the weights for it."""

    def __init__(self, task: Task):
        try:
            from evaluation.judges.judge import MissingJudgeError
            from evaluation.judges.words import Words
        except ModuleNotFoundError as error:
            missing = f"{error.name} is missing: `pip install -r requirements-serve.txt`"
            raise UserError(f"--max-word-errors: {missing}") from error

        self.limit = task.max_word_errors or 0.0
        device = open_device()
        try:
            self.words = Words(task.whisper, task.language, device)
        except MissingJudgeError as error:
            raise UserError(f"--max-word-errors: {error}") from error
        self.codec = load_release(task.release, device=device)

    def hears_other_words(self, codes: Tensor, text: str) -> bool:
        from evaluation.judges.words import errors

        sound = self.codec.decode(codes[None].to(self.codec.device))[0, 0].cpu()
        found, _ = errors(self.words.normalize(text), self.words.normalize(self.words.transcribe(sound)))
        return found is not None and found[0] > self.limit
