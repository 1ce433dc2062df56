"""The language model of a release and its acoustic transformer as one module, to train and to ask about codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, MistralConfig, MistralModel

from codec.config import SPECIAL_TOKENS
from language_model.acoustic_transformer import AcousticTransformer
from language_model.config import LanguageModelConfig
from language_model.losses import flow_matching_loss, is_end, mean_by_sequence, semantic_loss
from language_model.prompt import Batch
from language_model.rotary import RotaryAngles

CONDITION_DROPOUT = 0.1  # share of frames that are trained without the hidden state (arXiv 2603.25551)
DRAWS = 4  # of noise and time a frame: cheap beside the language model, and the loss varies less
ROW_STD = 0.1  # of a position's input in a new model, whether text or frame


class LanguageModel(nn.Module):
    """A new model has random weights, in float32 and in training mode. `load_language_model` reads a release's."""

    first_rows: Tensor

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = MistralModel(mistral_config(config))
        self.backbone.rotary_emb = RotaryAngles(config.head_dim, config.rope_theta)  # type: ignore[assignment]
        self.audio_embeddings = nn.Embedding(config.audio_rows, config.dim)
        self.acoustic_transformer = AcousticTransformer(config)
        self.register_buffer("first_rows", torch.tensor(config.first_rows), persistent=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Inputs of text and of frames start equally large; rows that are never read are zero."""
        self.backbone.embed_tokens.weight.normal_(std=ROW_STD)
        self.audio_embeddings.weight.normal_(std=ROW_STD / self.config.num_codebooks**0.5)
        self.audio_embeddings.weight[sum(self.config.codebook_sizes) :] = 0
        self.acoustic_transformer.semantic_codebook_output.weight[self.config.semantic_classes :] = 0

    @property
    def dtype(self) -> torch.dtype:
        return self.audio_embeddings.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.audio_embeddings.weight.device

    def embed_frames(self, frames: Tensor) -> Tensor:
        """Coded frames [..., 37] -> input rows [..., dim]: the sum of a row of each codebook."""
        if self.training:
            return self._embed_by_product(frames)
        # the codebooks first, as the server has them: another order of summands can round otherwise
        return F.embedding((frames + self.first_rows).movedim(-1, 0), self.audio_embeddings.weight).sum(dim=0)

    def _embed_by_product(self, frames: Tensor) -> Tensor:
        """The same, with the acoustic rows chosen by a one-hot matrix: the table's gradient is then one matrix product.
        The gradient of a lookup adds 36 rows a frame, one after the other, to only 21 rows of each codebook."""
        weight, (first, size) = self.audio_embeddings.weight, self.config.codebook_sizes[:2]
        levels = torch.arange(size, device=frames.device)
        one_hot = (frames[..., 1:, None] == levels).flatten(-2).to(weight.dtype)
        return F.embedding(frames[..., 0], weight) + one_hot @ weight[first : first + one_hot.shape[-1]]

    def embed(self, batch: Batch) -> Tensor:
        """Input rows [B, T, dim]."""
        text = self.backbone.embed_tokens(batch.tokens)
        is_frame = (batch.tokens == self.config.audio_token_id)[..., None]
        return torch.where(is_frame, self.embed_frames(batch.frames), text)

    def states(
        self,
        rows: Tensor,
        cache: DynamicCache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Input rows [B, T, dim] -> hidden states [B, T, dim], normed. With a cache (see `new_cache`) the rows follow
        those it holds. For sequences padded on the left: `mask` [B, cached + T] is 1 where there is a row, `positions`
        [B, T] count from each sequence's first."""
        output = self.backbone(
            inputs_embeds=rows,
            attention_mask=mask,
            position_ids=positions,
            cache=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.backbone.config)

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [B, T − 1, dim]: at p, what the frame at p + 1 is predicted from."""
        return self.states(self.embed(batch)[:, :-1])

    def loss(
        self,
        batch: Batch,
        hidden: Tensor | None = None,
        draws: int = DRAWS,
        generator: torch.Generator | None = None,
        by_sequence: bool = False,
    ) -> dict[str, Tensor]:
        """Scalars: `semantic` (cross entropy in nats), `acoustic` (flow matching), their sum `loss`, and
        `semantic_accuracy`. With `by_sequence` each is [B], the mean over a sequence's own frames.

        `hidden` are the states of `self.hidden`, where the caller needs them too, or computes them from frames with
        noise. In training mode the condition is dropped in 10 % of the draws, in evaluation mode never.
        """
        hidden = self.hidden(batch) if hidden is None else hidden
        sequence, position = batch.targets[:, 1:].nonzero(as_tuple=True)
        frames, hidden = batch.frames[:, 1:][sequence, position], hidden[sequence, position]
        targets, spoken = frames[:, 0], ~is_end(frames[:, 0])
        logits = self.acoustic_transformer.semantic_logits(hidden)
        dropout = CONDITION_DROPOUT if self.training else 0.0
        codes = frames[spoken, 1:] - SPECIAL_TOKENS
        acoustic = flow_matching_loss(self.acoustic_transformer, hidden[spoken], codes, draws, dropout, generator)
        semantic, right = semantic_loss(logits, targets), (logits.argmax(dim=-1) == targets).float()
        parts = {
            "semantic": (semantic, sequence),
            "acoustic": (acoustic, sequence[spoken]),
            "semantic_accuracy": (right, sequence),
        }
        size = len(batch.tokens)
        losses = {
            name: mean_by_sequence(values, where, size) if by_sequence else values.mean()
            for name, (values, where) in parts.items()
        }
        return {"loss": losses["semantic"] + losses["acoustic"], **losses}

    def forward(self, batch: Batch, **options: object) -> dict[str, Tensor]:
        """`loss`, as the call that DistributedDataParallel wraps."""
        return self.loss(batch, **options)  # type: ignore[arg-type]


def mistral_config(config: LanguageModelConfig) -> MistralConfig:
    return MistralConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.hidden_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        sliding_window=None,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )
