"""A release's own language model speaks: pairs of codes and text, from which an encoder learns to use the codes as the
language model does.

    python speak_pairs.py --hours 10                           # LibriTTS-R's texts, the preset voices, into runs/pairs
    python speak_pairs.py --texts texts.txt --language fr --voices fr_female fr_male
    python speak_pairs.py --prompts SPEECH                     # voices of clips, once the release has an encoder
    python speak_pairs.py --hours 100 --gpus 0 1 --processes 2 # two processes on each of two GPUs

Run it in the server's environment (requirements-serve.txt). It runs the first stage of vllm-omni's model, the language
model, with the server's own code, and keeps the codes; nothing installed is changed. `data.pairs` of train_encoder.py
takes the folder. Every text gets other noise. What is no speech is left out and counted. Files appear whole: repeat a
command to go on after a kill. Exit status: 0, or 2 for an error, with one sentence.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from system.signals import end_on_signals

    end_on_signals()

import argparse
import base64
import json
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from codec.checkpoint import checkpoint_tensors, codec_fingerprint, load_release
from codec.config import CodecConfig
from codec.files import open_tensors
from codec.voices import until_end_of_audio
from data.clips import Clips, DataError
from data.pairs import About, Pair, write_shard
from data.sources import open_clips
from data.speaking import REASONS, WORDS, Job, Plan, choose_voices, fault, prompt_of, read_texts
from system.command import UserError, exit_status, model_folder
from system.device import open_device
from system.environment import from_environment
from system.files import write_whole

DEFAULT_TEXTS = "mythicinfinity/libritts_r:train"
TOGETHER = 250  # jobs that are given to the engine at once; their prompts are in memory
REPORT_SECONDS = 30
CLOSE_SECONDS = 60
START_SECONDS = 1800  # of the engine: 8 GB may come from a slow disk
PIPELINE = "voxtral_tts_codes"
# vllm-omni's own settings for this stage (deploy/voxtral_tts.yaml). More than 32 sequences leave the CUDA graphs.
STAGE: dict[str, Any] = {
    "stage_id": 0,
    "devices": "0",
    "max_num_seqs": 32,
    "max_num_batched_tokens": 32768,
    "max_model_len": 4096,
    "enforce_eager": False,
    "async_scheduling": True,
    "enable_prefix_caching": False,
    "enable_chunked_prefill": False,
    "trust_remote_code": True,
    "tokenizer_mode": "mistral",
    "config_format": "mistral",
    "load_format": "mistral",
    "skip_mm_profiling": True,
    # a request's own cfg_alpha is only read if one stands here
    "default_sampling_params": {"temperature": 0.0, "max_tokens": 2048, "extra_args": {"cfg_alpha": 1.2}},
}


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    left = "the files written so far are whole; repeat the command to go on"
    return exit_status(lambda: speak(options), left, left)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", metavar="DIR", help="the release's folder (default: MODEL_DIR)")
    parser.add_argument("--out", type=Path, default=Path("runs/pairs"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--texts",
        default=DEFAULT_TEXTS,
        metavar="SOURCE",
        help="a text file, a text a line, or speech with transcripts, as data.train takes it (default: %(default)s)",
    )
    parser.add_argument("--language", default="en", help="the texts' language, noted in the pairs (default: en)")
    parser.add_argument("--voices", nargs="+", default=[], metavar="NAME", help="default: all voices of the release")
    parser.add_argument("--prompts", nargs="+", default=[], metavar="SOURCE", help="speech whose voices speak instead")
    parser.add_argument("--hours", type=float, help="speak so much; texts come again (default: every text once)")
    parser.add_argument(
        "--cfg-alpha", type=float, nargs="+", default=[1.2], metavar="A", help="guidance, or its range (default: 1.2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of voices, texts' order and noise (default: 0)")
    parser.add_argument("--max-seconds", type=float, default=60.0, metavar="S", help="of a text's speech (default: 60)")
    parser.add_argument(
        "--keep",
        nargs="+",
        default=[],
        choices=REASONS,
        metavar="REASON",
        help=f"keep it too: {', '.join(REASONS)}",
    )
    parser.add_argument(
        "--max-word-errors", type=float, metavar="RATE", help="leave out speech of which Whisper gets more words wrong"
    )
    parser.add_argument("--whisper", default="base", metavar="MODEL", help="name or file (default: base)")
    parser.add_argument("--gpus", nargs="+", default=[], metavar="N", help="GPUs to use (default: the first one)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="for each GPU (default: 1)")
    parser.add_argument("--shard-texts", type=int, default=1000, metavar="N", help="texts of a file (default: 1000)")
    parser.add_argument(
        "--engine",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of vllm-omni's stage: enforce_eager=true",
    )
    return parser


@dataclass(frozen=True)
class Task:
    """What a process needs to know."""

    release: Path
    out: Path
    plan: Plan
    config: CodecConfig
    codec_fingerprint: str
    language: str
    prompts: tuple[str, ...]
    cache: str
    stage: dict[str, Any]
    max_tokens: int
    keep: tuple[str, ...]
    max_word_errors: float | None
    whisper: str
    processes: int


def speak(options: argparse.Namespace) -> int:
    task = read_task(options)
    task.out.mkdir(parents=True, exist_ok=True)
    check_plan(task)
    before = sum(shard_seconds(path, task.config) for path in sorted(task.out.glob("pairs_*.safetensors")))
    gpus: list[str | None] = list(options.gpus) or [None]
    devices = [gpu for gpu in gpus for _ in range(options.processes)]
    context = multiprocessing.get_context("spawn")
    messages, enough = context.Queue(), context.Event()
    starting = {gpu: context.Lock() for gpu in gpus}  # an engine measures the free memory of its GPU when it starts
    workers = [
        context.Process(
            target=run_worker,
            args=(task, number, device, messages, enough, starting[device]),
            name=f"process {number}",
        )
        for number, device in enumerate(devices)
    ]
    report = Report(before, options.hours)
    try:
        for worker in workers if not report.complete else ():
            worker.start()
        follow([worker for worker in workers if worker.pid], messages, report, enough)
    finally:
        stop(worker for worker in workers if worker.pid)
    report.show(final=True)
    print(f"pairs: {task.out}\nnext: python train_encoder.py --config configs/v4.yaml data.pairs={task.out}")
    return 0


def read_task(options: argparse.Namespace) -> Task:
    folder = model_folder(options.model_dir)
    cache = from_environment("HF_CACHE")
    if options.max_seconds <= 0 or min(options.cfg_alpha) <= 0 or len(options.cfg_alpha) > 2:
        raise DataError("--max-seconds and --cfg-alpha have to be above 0, and --cfg-alpha is one number or two")
    if options.shard_texts < 1 or options.processes < 1:
        raise DataError("--shard-texts and --processes have to be 1 or more")
    codec = load_release(folder)
    if options.prompts and not codec.has_encoder:
        raise DataError(f"--prompts: {folder} has no encoder for them yet: inject one with inject_encoder.py")
    plan = Plan(
        texts=read_texts(options.texts, cache),
        voices=() if options.prompts else choose_voices(folder, options.voices),
        prompts=len(open_clips(options.prompts, cache)) if options.prompts else 0,
        cfg_alpha=(min(options.cfg_alpha), max(options.cfg_alpha)),
        seed=options.seed,
        shard_jobs=options.shard_texts,
        repeat=options.hours is not None,
    )
    share = {"gpu_memory_utilization": round(0.85 / options.processes, 2)}
    return Task(
        release=folder,
        out=options.out,
        plan=plan,
        config=codec.config,
        codec_fingerprint=codec_fingerprint(checkpoint_tensors(codec)),
        language=options.language,
        prompts=tuple(options.prompts),
        cache=cache,
        stage=STAGE | share | engine_settings(options.engine),
        max_tokens=round(options.max_seconds * codec.frame_rate),
        keep=tuple(options.keep),
        max_word_errors=options.max_word_errors,
        whisper=options.whisper,
        processes=options.processes * max(1, len(options.gpus)),
    )


def engine_settings(given: Sequence[str]) -> dict[str, Any]:
    settings = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise DataError(f"--engine {text!r}: expected KEY=VALUE")
        settings[key] = yaml.safe_load(value)
    return settings


def check_plan(task: Task) -> None:
    """Writes the plan's fingerprint, or compares it with the one that is there. Raises DataError if they differ."""
    path = task.out / "plan.json"
    mine = json.dumps({"plan": task.plan.fingerprint(), "codec_fingerprint": task.codec_fingerprint}) + "\n"
    if path.exists() and path.read_bytes() != mine.encode():
        raise DataError(
            f"{task.out} has pairs of other texts, voices, numbers or another release: name another folder with --out"
        )
    write_whole(path, mine)


def shard_seconds(path: Path, config: CodecConfig) -> float:
    with open_tensors(path) as file:
        return float(file.get_slice("semantic").get_shape()[0] / config.frame_rate)


class Report:
    """How much is spoken, how much was left out and why, and how long the rest takes."""

    def __init__(self, seconds_before: float, hours: float | None):
        self.spoken, self.before, self.goal = seconds_before, seconds_before, hours and 3600 * hours
        self.pairs, self.left_out, self.started, self.shown = 0, Counter[str](), time.monotonic(), 0.0

    @property
    def complete(self) -> bool:
        return self.goal is not None and self.spoken >= self.goal

    def take(self, kind: str, value: Any) -> None:
        if kind == "spoken":
            self.spoken, self.pairs = self.spoken + value, self.pairs + 1
        elif kind == "left out":
            self.left_out[value] += 1
        elif kind == "ready":
            self.started = time.monotonic()
        if time.monotonic() - self.shown > REPORT_SECONDS:
            self.show()

    def show(self, final: bool = False) -> None:
        self.shown = time.monotonic()
        rate = (self.spoken - self.before) / max(1e-9, self.shown - self.started)
        text = f"{self.spoken / 3600:.2f} hours spoken ({self.pairs} pairs now), {rate:.1f} s a second"
        if self.goal and rate > 0 and not final:
            left = timedelta(seconds=round(max(0.0, self.goal - self.spoken) / rate))
            text += f", {max(0.0, self.goal - self.spoken) / 3600:.2f} hours to go: {left}"
        print(text, file=sys.stderr, flush=True)
        if final:
            for reason, count in self.left_out.most_common():
                print(f"left out {count} times: {REASONS[reason]}", file=sys.stderr)


def follow(workers: Sequence[BaseProcess], messages: Any, report: Report, enough: Any) -> None:
    """Reports until all processes have ended. Raises UserError if one of them fails."""
    while True:
        try:
            report.take(*messages.get(timeout=1))
            if report.complete:
                enough.set()
            continue
        except queue.Empty:
            pass
        failed = [worker for worker in workers if worker.exitcode not in (None, 0)]
        if failed:
            raise UserError(f"{failed[0].name} ended with status {failed[0].exitcode}: its output above says why")
        if all(worker.exitcode == 0 for worker in workers):
            return


def stop(workers: Iterable[BaseProcess]) -> None:
    """Ends processes that still run. Each may close its engine first, whose own processes would outlive it."""
    running = [worker for worker in workers if worker.is_alive()]
    for worker in running:
        worker.terminate()
    for worker in running:
        worker.join(CLOSE_SECONDS)
        worker.kill()


def run_worker(
    task: Task, number: int, device: str | None, messages: Any, enough: Any, starting: AbstractContextManager[Any]
) -> None:
    """A process of its own, on one GPU. Of Ctrl-C the first process tells it, with SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    left = "the file that was being spoken is not written"
    sys.exit(exit_status(lambda: work(task, number, messages, enough, starting), left, left))


def work(task: Task, number: int, messages: Any, enough: Any, starting: AbstractContextManager[Any]) -> int:
    """Speaks every `task.processes`-th shard that is not there yet, as long as the process that asked for it lives.
    `starting` is held while the engine starts. Raises UserError if nothing of a shard is speech."""
    parent, engine = multiprocessing.parent_process(), None
    clips = open_clips(task.prompts, task.cache) if task.prompts else None
    with ExitStack() as closing:
        for shard in count(number, task.processes):
            ended = task.plan.shards is not None and shard >= task.plan.shards
            if ended or enough.is_set() or (parent and not parent.is_alive()):
                return 0
            path = task.out / f"pairs_{shard:05}.safetensors"
            if path.exists():
                continue
            if engine is None:
                with starting:
                    engine = Engine(task, clips, seed=task.plan.seed + shard)
                closing.callback(engine.close)
                messages.put(("ready", number))
            pairs = []
            for pair, reason in engine.pairs(task.plan.jobs(shard), task.plan.guidance(shard)):
                if reason and reason not in task.keep:
                    messages.put(("left out", reason))
                else:
                    pairs.append(pair)
                    messages.put(("spoken", pair.codes.shape[1] / task.config.frame_rate))
            if not pairs:
                texts = task.plan.shard_jobs
                raise UserError(f"none of {texts} texts became speech: does this release speak when it is served?")
            write_shard(path, pairs, task.codec_fingerprint)
    return 0


class Engine:
    """vllm-omni's first stage alone. `seed` is that of its noise: the process draws it, whatever a request says."""

    def __init__(self, task: Task, clips: Clips | None, seed: int):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
        from vllm_omni.config.pipeline_registry import register_pipeline
        from vllm_omni.entrypoints.omni import Omni
        from vllm_omni.outputs.output_modality import TensorAccumulationStrategy, register_key_accumulation_strategy

        self.task, self.clips, self.seed = task, clips, seed
        self.tokenizer = MistralTokenizer.from_file(str(task.release / "tekken.json")).instruct_tokenizer
        register_pipeline(codes_pipeline())
        register_key_accumulation_strategy("audio", TensorAccumulationStrategy.REPLACE)  # hidden states: not needed
        deploy = {"pipeline": PIPELINE, "async_chunk": False, "stages": [task.stage | {"seed": seed}]}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "codes.yaml")
            path.write_text(yaml.safe_dump(deploy), encoding="utf-8")
            limits = {"stage_init_timeout": START_SECONDS, "init_timeout": START_SECONDS}
            self.omni = Omni(model=str(task.release), deploy_config=str(path), **limits)
        self.judge = WordJudge(task) if task.max_word_errors is not None else None

    def pairs(self, jobs: Sequence[Job], cfg_alpha: float) -> Iterator[tuple[Pair, str]]:
        """A pair for each job, and why it is no speech, or an empty text. They come in the order in which they end."""
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0.0, max_tokens=self.task.max_tokens, extra_args={"cfg_alpha": cfg_alpha})
        for first in range(0, len(jobs), TOGETHER):
            some = jobs[first : first + TOGETHER]
            prompts, voices = zip(*(self.prompt(job) for job in some), strict=True)
            for answer in self.omni.generate(list(prompts), sampling, py_generator=True, use_tqdm=False):
                index = int(answer.request_id.split("_")[0])
                coded = answer.multimodal_output["codes"]["audio"].reshape(-1, self.task.config.num_codebooks)
                codes, ended = until_end_of_audio(coded.cpu())
                text = some[index].text
                about = About(text, voices[index], self.task.language, self.seed, cfg_alpha)
                reason = fault(codes, ended, text, self.task.config.frame_rate)
                if not reason and self.judge and self.judge.hears_other_words(codes, text):
                    reason = WORDS
                yield Pair(codes, about), reason

    def prompt(self, job: Job) -> tuple[dict[str, Any], str]:
        """What the engine gets for a job, made as the server makes it, and the name of the voice."""
        from mistral_common.protocol.speech.request import SpeechRequest

        if self.clips is None:
            request = SpeechRequest(input=job.text, voice=job.voice)
            tokens = self.tokenizer.encode_speech_request(request).tokens
            return {"prompt_token_ids": tokens, "additional_information": {"voice": [job.voice]}}, job.voice
        reference, speaker = prompt_of(self.clips, job.prompt, self.task.plan.seed + job.number)
        audio = base64.b64encode(reference.wav()).decode()
        encoded = self.tokenizer.encode_speech_request(SpeechRequest(input=job.text, ref_audio=audio))
        clip = encoded.audios[0]
        data = {"audio": [(clip.audio_array, clip.sampling_rate)]}
        return {"prompt_token_ids": encoded.tokens, "multi_modal_data": data}, speaker

    def close(self) -> None:
        self.omni.close()


def codes_pipeline() -> Any:
    """A pipeline of one stage. Its output type has to be "audio": only then does vllm-omni hand a frame's codes to the
    next step of a last stage; with another type it would speak nonsense, without an error."""
    from vllm_omni.config.stage_config import PipelineConfig, StageExecutionType, StagePipelineConfig

    stage = StagePipelineConfig(
        stage_id=0,
        model_stage="audio_generation",
        execution_type=StageExecutionType.LLM_AR,
        input_sources=(),
        final_output=True,
        final_output_type="audio",
        owns_tokenizer=True,
        engine_output_type="audio",
        sampling_constraints={"detokenize": True},
    )
    return PipelineConfig(model_type=PIPELINE, model_arch="VoxtralTTSForConditionalGeneration", stages=(stage,))


class WordJudge:
    """Decodes speech and lets Whisper write it down."""

    def __init__(self, task: Task):
        from evaluation.judges.words import Words

        self.limit = task.max_word_errors or 0.0
        device = open_device()
        self.words = Words(task.whisper, task.language, device)
        self.codec = load_release(task.release, device=device)

    def hears_other_words(self, codes: Tensor, text: str) -> bool:
        from evaluation.judges.words import errors

        sound = self.codec.decode(codes[None].to(self.codec.device))[0, 0].cpu()
        found, _ = errors(self.words.normalize(text), self.words.normalize(self.words.transcribe(sound)))
        return found is not None and found[0] > self.limit


if __name__ == "__main__":
    sys.exit(main())
