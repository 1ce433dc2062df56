"""A run's speech: batches of training crops from any position of the stream on, and the fixed validation clips."""

from __future__ import annotations

from collections.abc import Generator

from data import Crops, JoinedClips, Stream, crop_loader, fixed_clips, open_sources, order_of
from data.crops import Batch
from training.config import Config
from training.distributed import Ranks


class TrainingData:
    """Opens the sources and downloads those of the hub. `validation` [N, 1, T] is on the rank's device."""

    def __init__(self, config: Config, ranks: Ranks, sample_rate: int):
        self.config, self.ranks, data = config, ranks, config.data
        self.crops_a_rank = config.batch_size * config.accumulate
        sources = open_sources(data.train, config.hf_cache)
        weights = [source.weight for source in data.train]
        self.order = order_of(sources, weights, data.sampling, config.seed)
        length, drop = round(data.crop_seconds * sample_rate), data.band_limited == "drop"
        self.crops = Crops(JoinedClips(sources), self.order, length, sample_rate, data.resample, config.seed, drop)
        held_out = JoinedClips(open_sources(data.validation, config.hf_cache))
        length = round(data.validation_seconds * sample_rate)
        self.validation = fixed_clips(held_out, data.validation_clips, length, sample_rate, data.resample, drop)
        self.validation = self.validation.to(ranks.device)
        ranks.barrier()  # another machine may still be downloading

    @property
    def seconds_a_step(self) -> float:
        """Seconds of audio in the crops of all ranks."""
        return self.crops_a_rank * self.ranks.world_size * self.config.data.crop_seconds

    def batches(self, position: int) -> Generator[Batch]:
        """This rank's batches from a position of the stream on, one a step. Closing it ends the workers."""
        stream = Stream(self.order, self.crops_a_rank, position, self.ranks.rank, self.ranks.world_size)
        return crop_loader(self.crops, stream, self.config.data.workers, self.ranks.device.type == "cuda")
