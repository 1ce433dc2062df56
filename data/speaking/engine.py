"""vllm-omni's first stage alone: the language model with the server's own code, in the server's environment."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from codec.voices import until_end_of_audio
from data.clips import Clips
from data.pairs import About, Pair
from data.speaking.faults import WORDS, fault
from data.speaking.plan import Job, Task
from data.speaking.texts_and_voices import prompt_of
from data.speaking.words import WordJudge
from system.command import UserError

TOGETHER = 250  # jobs that are given to the engine at once; their prompts are in memory
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


class Engine:
    """vllm-omni's first stage alone. `seed` is that of its noise: the process draws it, whatever a request says. Raises
    UserError outside the server's environment, or if words are to be judged and cannot be."""

    def __init__(self, task: Task, clips: Clips | None, seed: int):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
            from vllm_omni.config.pipeline_registry import register_pipeline
            from vllm_omni.entrypoints.omni import Omni
            from vllm_omni.outputs.output_modality import TensorAccumulationStrategy, register_key_accumulation_strategy
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is missing: run this in the server's environment (docs/pairs.md)") from error

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
        with ExitStack() as failing:
            failing.callback(self.close)  # a process whose engine is open does not end
            self.judge = WordJudge(task) if task.max_word_errors is not None else None
            failing.pop_all()

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
