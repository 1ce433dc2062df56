"""A run's data: batches of training crops from any position of the stream on, the crops of pairs of any step, and the
fixed validation clips."""

from __future__ import annotations

from collections.abc import Generator

from codec.checkpoint import codec_fingerprint
from codec.codec import Codec
from data import Crops, JoinedClips, Stream, crop_loader, fixed_clips, open_sources, order_of
from data.crops import Batch
from data.pairs import PairBatch, PairCrops, Pairs
from training.config import Config
from training.distributed import Ranks


class TrainingData:
    """Opens the sources and the pairs, and downloads data sets of the hub. `validation` [N, 1, T] is on the rank's
    device."""

    def __init__(self, config: Config, ranks: Ranks, codec: Codec):
        self.config, self.ranks, data, sample_rate = config, ranks, config.data, codec.sample_rate
        self.crops_a_rank = config.crops_a_batch * config.accumulate
        sources = open_sources(data.train, config.hf_cache)
        weights = [source.weight for source in data.train]
        self.order = order_of(sources, weights, data.sampling, config.seed)
        length, drop = round(data.crop_seconds * sample_rate), data.band_limited == "drop"
        self.crops = Crops(JoinedClips(sources), self.order, length, sample_rate, data.resample, config.seed, drop)
        self.pair_crops: PairCrops | None = None
        if data.pairs:
            pairs = Pairs(data.pairs, codec.config, codec_fingerprint(codec))
            self.pair_crops = PairCrops(pairs, length, config.seed)
        held_out = JoinedClips(open_sources(data.validation, config.hf_cache))
        length = round(data.validation_seconds * sample_rate)
        self.validation = fixed_clips(held_out, data.validation_clips, length, sample_rate, data.resample, drop)
        self.validation = self.validation.to(ranks.device)
        ranks.barrier()  # another machine may still be downloading

    @property
    def seconds_a_step(self) -> float:
        """Seconds of speech in the crops of all ranks, without those of pairs."""
        return self.crops_a_rank * self.ranks.world_size * self.config.data.crop_seconds

    def batches(self, position: int) -> Generator[Batch]:
        """This rank's batches from a position of the stream on, one a step. Closing it ends the workers."""
        stream = Stream(self.order, self.crops_a_rank, position, self.ranks.rank, self.ranks.world_size)
        return crop_loader(self.crops, stream, self.config.data.workers, self.ranks.device.type == "cuda")

    def pairs(self, step: int) -> PairBatch | None:
        """This rank's crops of pairs for a step, None without pairs."""
        count = self.config.pairs_a_batch * self.config.accumulate
        return self.pair_crops.draw(step, count, self.ranks.rank, self.ranks.world_size) if self.pair_crops else None
