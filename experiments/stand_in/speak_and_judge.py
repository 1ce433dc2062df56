"""Speaks unseen sentences with the stand-in's language model, and judges words and voices. Without a server.

    python -m experiments.stand_in.speak_and_judge RELEASE CODES OUT --whisper base

RELEASE is what train_language_model.py wrote, CODES a folder of code_statistics.py. The sentences are of the test
split's closed vocabulary. They are spoken with

- every preset voice of RELEASE, and
- a clip of each of `--speakers` speakers of the test split, which neither codec nor language model heard, encoded by
  the codec's own encoder.

OUT gets a WAV file for each sentence, `judged.json` and the codes. The program prints the words wrong, by Whisper; how
often the right one of the speakers is nearest, by Resemblyzer; lengths; and a line for each sentence. A speaker's
reference is the prompt clip, decoded by the codec.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn import functional as F

from codec.checkpoint import load_release
from codec.codec import Codec
from codec.voices import read_voices
from evaluation.judges.speakers import Resemblyzer
from evaluation.judges.words import Words, errors
from evaluation.statistics import Interval, mean
from experiments.runs import experiment_status
from experiments.stand_in.letters import letter_ids
from experiments.stand_in.spoken_codes import SpokenCodes
from language_model import Prompt, generate, load_language_model
from system.device import open_device

PROMPT_FRAMES = 50  # a speaker's prompt is the clip nearest to this length
MOST_FRAMES = 200
BATCH = 12


class Line(NamedTuple):
    """A sentence to speak in a voice."""

    group: str  # "preset" or "unseen"
    voice: str
    text: str
    prompt: Tensor


def sentences_for(
    voices: dict[str, Tensor], group: str, speech: SpokenCodes, count: int, rng: np.random.Generator
) -> list[Line]:
    """`count` sentences for each voice, all different as long as there are enough."""
    texts = sorted({text for text, kind in zip(speech.texts, speech.kinds, strict=True) if kind == "closed"})
    dealt = [texts[i] for i in rng.permutation(len(texts))] * (1 + len(voices) * count // len(texts))
    return [
        Line(group, voice, dealt[number * count + i], prompt)
        for number, (voice, prompt) in enumerate(voices.items())
        for i in range(count)
    ]


def unseen_voices(speech: SpokenCodes, speakers: int) -> dict[str, Tensor]:
    """Codes [37, N] of one clip of each speaker."""
    names = sorted(set(speech.speakers))
    names = [names[i * len(names) // speakers] for i in range(min(speakers, len(names)))]
    voices = {}
    for name in names:
        own = [i for i, speaker in enumerate(speech.speakers) if speaker == name]
        clip = min(own, key=lambda i: abs(int(speech.lengths[i]) - PROMPT_FRAMES))
        voices[name] = speech.codes(speech.speech(clip))
    return voices


def judge(options: argparse.Namespace) -> int:
    device = open_device(options.device)
    model = load_language_model(options.release, device)
    codec = load_release(options.release, device=device)
    speech = SpokenCodes([options.codes], "test")
    presets = read_voices(options.release / "voice_embedding", model.config.dim)
    unseen = unseen_voices(speech, options.speakers)
    rng = np.random.default_rng(options.seed)
    lines = sentences_for(presets, "preset", speech, options.preset_sentences, rng)
    lines += sentences_for(unseen, "unseen", speech, options.sentences, rng)
    options.out.mkdir(parents=True, exist_ok=True)

    words = Words(options.whisper, "en", torch.device("cpu"))
    resemblyzer = Resemblyzer(torch.device("cpu"))
    references = torch.stack([resemblyzer.embed(decoded(codec, codes)) for codes in unseen.values()])
    judged: list[dict[str, Any]] = []
    kept: dict[str, Any] = {}
    for first in range(0, len(lines), BATCH):
        batch, began = lines[first : first + BATCH], time.monotonic()
        prompts = [Prompt(line.prompt, letter_ids(line.text)) for line in batch]
        spoken = generate(model, prompts, MOST_FRAMES, options.cfg_alpha, seeds=range(first, first + len(batch)))
        seconds = time.monotonic() - began
        for number, (line, said) in enumerate(zip(batch, spoken, strict=True), start=first):
            entry: dict[str, Any] = {"group": line.group, "voice": line.voice, "text": line.text}
            entry |= {"frames": said.codes.shape[1], "ended": said.ended}
            kept[str(number)] = said.codes.numpy().astype(np.int16)
            if said.codes.shape[1]:
                waveform = decoded(codec, said.codes)
                soundfile.write(options.out / f"{number:03}_{line.voice}.wav", waveform.numpy(), codec.sample_rate)
                entry["transcript"] = words.transcribe(waveform)
                entry |= nearest(resemblyzer, waveform, references, list(unseen))
            judged.append(entry | {"wrong": words_wrong(words, line.text, entry.get("transcript", ""))})
            print(
                f"{line.voice}: {line.text}\n    {entry.get('transcript', '')} [{judged[-1]['wrong']:.0%}]", flush=True
            )
        print(f"{len(batch)} sentences in {seconds:.0f} s", flush=True)
    np.savez_compressed(options.out / "codes.npz", **kept)
    summary = {group: summarised([entry for entry in judged if entry["group"] == group]) for group in groups(judged)}
    text = json.dumps({"summary": summary, "sentences": judged}, indent=1, ensure_ascii=False)
    (options.out / "judged.json").write_text(text, encoding="utf-8")
    for group, figures in summary.items():
        print(f"{group}: {figures}")
    return 0


def decoded(codec: Codec, codes: Tensor) -> Tensor:
    """Codes [37, F] to the waveform [T] in [-1, 1]."""
    return codec.decode(codes[None].to(codec.device))[0, 0].clamp(-1, 1).cpu()


def nearest(judge: Resemblyzer, waveform: Tensor, references: Tensor, names: list[str]) -> dict[str, Any]:
    try:
        similarity = F.cosine_similarity(judge.embed(waveform)[None], references)
    except ValueError as error:  # no speech in it
        return {"no_similarity": str(error)}
    return {
        "nearest": names[int(similarity.argmax())],
        "similarity": dict(zip(names, similarity.tolist(), strict=True)),
    }


def words_wrong(judge: Words, text: str, transcript: str) -> float:
    rate, _ = errors(judge.normalize(text), judge.normalize(transcript))
    assert rate is not None  # every sentence has words
    return rate[0]


def groups(judged: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(entry["group"] for entry in judged))


def summarised(entries: list[dict[str, Any]]) -> dict[str, Any]:
    voices = [entry["voice"] for entry in entries]
    lengths = np.array([len(entry["text"].split()) for entry in entries], float)
    found: dict[str, Any] = {
        "sentences": len(entries),
        "words_wrong": interval(mean(np.array([entry["wrong"] for entry in entries]), lengths, 0, voices)),
        "ended": float(np.mean([entry["ended"] for entry in entries])),
    }
    if entries[0]["group"] == "unseen":
        right = np.array([float(entry.get("nearest") == entry["voice"]) for entry in entries])
        found["right_speaker"] = interval(mean(right, np.ones(len(right)), 0, voices))
        own = [entry["similarity"][entry["voice"]] for entry in entries if "similarity" in entry]
        found["similarity"] = round(float(np.mean(own)), 3) if own else None
    return found


def interval(found: Interval) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("release", "codes", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--whisper", default="base", help="name or file (default: %(default)s)")
    parser.add_argument("--speakers", type=int, default=12, help="unseen ones (default: %(default)s)")
    parser.add_argument("--sentences", type=int, default=4, help="of each unseen speaker (default: %(default)s)")
    parser.add_argument("--preset-sentences", type=int, default=10, help="of each preset (default: %(default)s)")
    parser.add_argument("--cfg-alpha", type=float, default=1.2, help="guidance (default: %(default)s)")
    parser.add_argument("--device", default="", help="(default: a GPU where there is one)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return experiment_status(lambda: judge(options), "what was spoken so far is kept")


if __name__ == "__main__":
    sys.exit(main())
