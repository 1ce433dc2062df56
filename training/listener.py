"""The speech recogniser beside the codec: it hears the originals, and the semantic codes learn what it made of them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from losses.asr.distillation import ASRDistillation
from training.companion import Companion
from training.config import Config
from training.distributed import Ranks


class Listener(Companion):
    """A frozen Whisper, and the projection to its width, which learns from the same loss as the encoder. Clips in which
    nothing was heard give no term; they are counted."""

    def __init__(self, config: Config, ranks: Ranks, semantic_dim: int):
        from losses.asr.teacher import Teacher  # with Whisper, which takes seconds to import

        options, cache = config.losses, Path(config.hf_cache) if config.hf_cache else None
        if not ranks.main:
            ranks.wait()  # the first one downloads
        self.teacher = Teacher.load(
            options.asr_teacher,
            ranks.device,
            cache / "whisper" if cache else None,
            language=options.asr_language,
            context_seconds=options.asr_context_seconds,
            cache=Path(options.asr_cache) if options.asr_cache else None,
        )
        if ranks.main:
            ranks.wait()
        network = ASRDistillation(semantic_dim, self.teacher.width).to(ranks.device)
        betas = (config.optimizer.beta1, config.optimizer.beta2)
        super().__init__(network, ranks, config.optimizer.lr, betas, config.accumulate)

    def distil(self, original: Tensor, quantized_semantic: Tensor) -> Tensor:
        """Originals [B, 1, T] and their semantic embeddings after the quantizer [B, D, F] to the loss of both the
        encoder and the projection. Its graph holds what `learn` differentiates afterwards: keep it."""
        heard = self.teacher.listen(original[:, 0])
        self.metrics = {"asr_silent_clips": heard.silent.float()}
        self.loss = self.network(heard, quantized_semantic)
        return self.loss
