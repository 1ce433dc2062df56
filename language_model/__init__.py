"""The language model of Voxtral TTS and its acoustic transformer: to train a small one, and to ask a release's own one
about codes.

    model = LanguageModel(LanguageModelConfig.from_params(params))     a new one
    losses = model.loss(collate(examples, model.config))               "loss", "semantic", "acoustic", …
    save_language_model(folder, model)                                 into a release
    speech = generate(load_language_model(folder), [Prompt(voice, text)])
"""

from language_model.checkpoint import load_language_model, save_language_model
from language_model.config import LanguageModelConfig
from language_model.generation import Speech, generate
from language_model.model import LanguageModel
from language_model.prompt import Batch, Example, Prompt, collate, text_tokenizer

__all__ = [
    "Batch",
    "Example",
    "LanguageModel",
    "LanguageModelConfig",
    "Prompt",
    "Speech",
    "collate",
    "generate",
    "load_language_model",
    "save_language_model",
    "text_tokenizer",
]
