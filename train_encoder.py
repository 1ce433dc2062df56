"""Trains the encoder that a Voxtral release lacks, against its frozen decoder.

    python train_encoder.py --config configs/demo.yaml                     # two CPU cores, minutes
    MODEL_DIR=... torchrun --nproc_per_node=4 train_encoder.py             # four GPUs, configs/v3.yaml
    python train_encoder.py --config configs/codec.yaml                    # a whole codec, from scratch
    python train_encoder.py --config configs/v3.yaml steps=1000 losses.mel=2

Settings are in the YAML files; `key=value` changes one. The run goes on from the newest checkpoint in `output_dir`
and leaves there `encoder.safetensors`, ready for inject_encoder.py.
"""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from codec.checkpoint import load_release, save_encoder, save_release
from codec.codec import Codec
from codec.config import CodecConfig, ReleaseError, read_params_file
from data import DataError
from losses import Diversity, commitment
from losses.asr.distillation import TeacherError
from losses.diversity import spacing
from losses.shaping import Shaping, target_as_json, voices_target
from losses.speaker import SpeakerModelError
from system.files import write_whole
from system.signals import StoppedError, StopRequest
from training.adversary import Adversary
from training.average import AveragedCodec
from training.checkpoints import CheckpointError, check_same_run, delete_old, load_newest, save_checkpoint
from training.companion import Companion
from training.config import Config, ConfigError, dump_config, load_config
from training.distributed import Ranks, RanksError, leave, start_ranks
from training.failures import MemoryFullError, explained
from training.inputs import StepInputs, step_inputs
from training.listener import Listener
from training.metrics import Latest, combined, over_ranks
from training.objectives import balancers, waveform_losses
from training.optimizer import adam, learning_rate, restore
from training.progress import Progress
from training.recompute import recompute
from training.replay import Replay
from training.speech import Speech
from training.validation import validate
from training.watch import FiniteWatch, Warnings, not_finite


class TrainingError(Exception):
    """The run cannot go on. The message says why, and what is left of it."""


# what a person can mend: one sentence, exit status 2
ERRORS = (
    *(CheckpointError, ConfigError, DataError, MemoryFullError, RanksError, ReleaseError),
    *(SpeakerModelError, TeacherError, TrainingError),
)


class Training:
    """Everything a step needs and a checkpoint holds. `begins`: whether the networks start here, as `config.init` has
    it, or a state will be loaded, for which any start will do."""

    def __init__(self, config: Config, ranks: Ranks, begins: bool = True):
        self.config, self.ranks = config, ranks
        recording = config.cuda_graph and ranks.device.type == "cuda"
        if recording and ranks.count > 1:
            raise ConfigError(f"cuda_graph is true with {ranks.count} GPUs, expected one")
        if recording:
            torch.cuda.set_stream(torch.cuda.Stream())  # what is recorded runs where the rest does
        self.replay = Replay(self.compute) if recording else None
        self.bf16 = config.precision == "bf16" and ranks.device.type == "cuda"
        torch.manual_seed(config.seed)
        self.codec = build_codec(config, config.init if begins else "random", ranks.device)
        names = ("encoder", "decoder") if config.train == "codec" else ("encoder",)
        self.trained = nn.ModuleDict({name: self.codec.get_submodule(name) for name in names}).requires_grad_(True)
        self.averaged = AveragedCodec(self.codec, names, config.optimizer.average_decay)
        self.encoder = self._running(self.codec.get_submodule("encoder"))
        self.decoder = self._running(self.codec.decoder)
        self.quantizer = self.codec.quantizer
        options = config.optimizer
        betas = (options.beta1, options.beta2)
        self.optimizer = adam(self.trained.parameters(), options.lr, betas, ranks.device)

        losses = config.losses
        self.adversary = Adversary(config, ranks, self.autocast) if losses.feature_matching else None
        self.listener = Listener(config, ranks, self.codec.config.semantic_dim) if losses.asr else None
        beside = {"discriminator": self.adversary, "asr projection": self.listener}
        self.companions: dict[str, Companion] = {name: one for name, one in beside.items() if one}
        self.diversity = Diversity(losses.diversity_temperature)
        # of a release's codebook, which stays as it is; one that learns is looked at in every step
        frozen = losses.diversity and config.train == "encoder"
        self.apart = spacing(self.quantizer.semantic_codebook.embedding) if frozen else None
        if losses.shaping:
            self.target = voices_target(self.codec, Path(config.model_dir) / "voice_embedding")
            self.shaping = Shaping(self.target).to(ranks.device)
        self.waveform_losses = waveform_losses(config, ranks, self.codec.sample_rate, self.adversary)
        self.waveform_balancer, self.latent_balancer = balancers(config, self.waveform_losses)
        self.watch, self.warnings = FiniteWatch(config.log_every), Warnings()
        self.latest = Latest()
        if config.recompute:
            recompute(self.codec, *([self.adversary.network] if self.adversary else []))
        self.entries_seen = torch.zeros(self.codec.config.semantic_codebook_size, dtype=torch.bool, device=ranks.device)
        self.place = 0  # in the stream of clips: how many were heard, by all ranks
        self.best_step, self.best_mel = 0, math.inf  # of all validations

    def _running(self, network: nn.Module) -> nn.Module:
        trained = any(parameter.requires_grad for parameter in network.parameters())
        running = self.ranks.parallel(network) if trained else network
        return torch.compile(running) if self.config.compile else running  # type: ignore[return-value]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.bf16)

    def step(self, waveform: Tensor, step: int) -> dict[str, Tensor]:
        """One step on crops [B, 1, T] of this rank, in `accumulate` parts. Returns metrics that still lie on the
        device."""
        inputs, losses = step_inputs(self.config, self.ranks, self.codec, waveform, step), self.losses_in(step)
        # a teacher writes its transcripts one token after the other, until the device says that they end
        compute = self.replay if self.replay and "asr" not in losses else self.compute
        metrics, flags = compute(inputs, losses)
        self.watch.look(step, flags)
        self.averaged.update(step)
        self.place += len(waveform) * self.ranks.count
        return self.latest.update(metrics)

    def losses_in(self, step: int) -> frozenset[str]:
        """Those of the losses that are not in every step which are in this one."""
        matched = self.adversary is not None and step >= self.config.discriminator.from_step
        heard = self.listener is not None and step % self.config.losses.asr_every == 0
        return frozenset({"feature_matching"} if matched else ()) | frozenset({"asr"} if heard else ())

    def compute(self, inputs: StepInputs, losses: frozenset[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All of a step that happens on the device. Returns metrics and, by loss, flags [B] of the crops whose gradient
        is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        for group in self.optimizer.param_groups:
            on_gpu = inputs.learning_rate.is_cuda
            group["lr"] = inputs.learning_rate if on_gpu else float(inputs.learning_rate)
        parts = self.config.accumulate
        with self.ranks.unsynchronised(self.encoder, self.decoder):
            passes = [self.backward(inputs, losses, part) for part in range(parts - 1)]
        passes.append(self.backward(inputs, losses, parts - 1))
        found, flags = zip(*passes, strict=True)
        norms = {
            f"gradient_norm/{name}": nn.utils.clip_grad_norm_(network.parameters(), self.config.optimizer.clip_norm)
            for name, network in self.trained.items()
        }
        self.optimizer.step()
        learnt = {f"gradient_norm/{name}": companion.update() for name, companion in self.companions.items()}
        norms |= {name: norm for name, norm in learnt.items() if norm is not None}
        # a network's gradient can overflow behind the losses'; in which clips is not known
        crops = len(inputs.waveform)
        overflown = not_finite({name: norm.expand(crops, 1) for name, norm in norms.items()})
        return combined(found) | norms, {n: torch.cat([flag[n] for flag in flags]) for n in flags[0]} | overflown

    def backward(
        self, inputs: StepInputs, losses: frozenset[str], part: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Adds the gradients of one part of a step's crops. Returns its metrics and flags."""
        batch, waveform = len(inputs.waveform), inputs.waveform.chunk(self.config.accumulate)[part]
        samples = waveform.shape[-1]
        # encoder -> quantizer -> decoder, cut at the latent and at the reconstruction, where gradients are balanced
        with self.autocast():
            encoded = self.encoder(waveform)
        latent = encoded.detach().float().requires_grad_()
        draw = inputs.draw.part(part, self.config.accumulate) if self.config.stochastic else None
        quantized = self.quantizer(latent, draw)
        with self.autocast():
            decoded = self.decoder(quantized.latent)
        reconstruction = decoded.detach().float()[..., :samples].requires_grad_()

        # losses on the reconstruction, each differentiated there
        absent = {"feature_matching"} - losses
        values = {
            name: loss(reconstruction, waveform) for name, loss in self.waveform_losses.items() if name not in absent
        }
        at_waveform = self.gradients(values, reconstruction)
        balanced = self.waveform_balancer.combine(at_waveform, {"l1": inputs.fade, "stft": inputs.fade})
        # one backward through the decoder; balanced norms are per item, so a batch's gradient is their mean
        decoded[..., :samples].backward(balanced.to(decoded.dtype) / batch)

        # losses on the latent, beside what arrived from the decoder
        assert latent.grad is not None
        semantic = latent[:, : self.codec.config.semantic_dim]
        on_latent: dict[str, Tensor] = {}
        if self.config.losses.commitment:
            on_latent["commitment"] = commitment(semantic, quantized.semantic)
        if self.listener and "asr" in losses:
            on_latent["asr"] = self.listener.distil(waveform, quantized.semantic)
        if self.config.losses.diversity:
            entries = self.quantizer.semantic_codebook.embedding
            on_latent["diversity"] = self.diversity(semantic, entries, self.apart)
        if self.config.losses.shaping:
            on_latent["shaping"] = self.shaping(latent[:, self.codec.config.semantic_dim :])
        at_latent = {**self.gradients(on_latent, latent), "reconstruction": latent.grad}
        # one backward through the encoder
        encoded.backward(self.latent_balancer.combine(at_latent).to(encoded.dtype) / batch)

        if self.config.train == "codec":
            self.quantizer.semantic_codebook.learn(semantic.detach(), quantized.codes[:, :1], inputs.seeds)
        self.entries_seen.index_fill_(0, quantized.codes[:, 0].flatten(), True)
        acoustic = quantized.codes[:, 1:].float()
        metrics = {
            **values,
            **on_latent,
            **{f"share/{name}": share for name, share in self.waveform_balancer.shares.items()},
            **{f"share_latent/{name}": share for name, share in self.latent_balancer.shares.items()},
            "acoustic_min": acoustic.min(),
            "acoustic_mean": acoustic.mean(),
            "acoustic_max": acoustic.max(),
        }
        for loss, companion in (("feature_matching", self.adversary), ("asr", self.listener)):
            metrics |= companion.metrics if companion and loss in losses else {}
        return metrics, not_finite(at_waveform | at_latent)

    def gradients(self, values: dict[str, Tensor], meeting: Tensor) -> dict[str, Tensor]:
        """Each loss differentiated where it meets the others. Companions learn from the graphs that their losses built;
        then all of these are let go, and only the values stay."""
        found = {name: torch.autograd.grad(value, meeting, retain_graph=True)[0] for name, value in values.items()}
        for companion in self.companions.values():
            companion.learn()
        for name, value in values.items():
            values[name] = value.detach()
        return found

    def validate(self, clips: Tensor, step: int, progress: Progress) -> bool:
        """Reports the averaged encoder on clips [N, 1, T]. Whether it is the best so far."""
        found = validate(self.averaged.codec, clips, self.config.batch_size, self.autocast)
        progress.log_validation(step, found, clips, self.codec.sample_rate)
        better = step > 0 and found.metrics["mel"] < self.best_mel
        if better:
            self.best_step, self.best_mel = step, found.metrics["mel"]
        return better

    def learning(self) -> dict[str, tuple[nn.Module, int]]:
        """Every network that learns, and how many steps it has made."""
        beside = {name: (one.network, one.updates) for name, one in self.companions.items()}
        return {name: (network, self.place) for name, network in self.trained.items()} | beside

    def state_dict(self) -> dict[str, object]:
        return {
            "trained": self.trained.state_dict(),
            "average": self.averaged.networks.state_dict(),
            "quantizer": self.quantizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "waveform_balancer": self.waveform_balancer.state_dict(),
            "latent_balancer": self.latent_balancer.state_dict(),
            "companions": {name: companion.state_dict() for name, companion in self.companions.items()},
            "place": self.place,
            "best": {"step": self.best_step, "mel": self.best_mel},
        }

    def load_state_dict(self, state: dict) -> None:
        self.trained.load_state_dict(state["trained"])
        self.averaged.networks.load_state_dict(state["average"])
        self.quantizer.load_state_dict(state["quantizer"])
        restore(self.optimizer, state["optimizer"])
        self.waveform_balancer.load_state_dict(state["waveform_balancer"], self.ranks.device)
        self.latent_balancer.load_state_dict(state["latent_balancer"], self.ranks.device)
        for name, companion in self.companions.items():
            companion.load_state_dict(state["companions"][name])
        self.place = state["place"]
        self.best_step, self.best_mel = state["best"]["step"], state["best"]["mel"]

    def start_from(self, folder: Path) -> None:
        """Takes over the averaged weights of another run's newest checkpoint; of a whole codec, the codebook too."""
        state = load_newest(folder / "checkpoints")
        if state is None:
            raise ConfigError(f"start_from is {folder}, expected the output_dir of a run with checkpoints")
        try:
            for networks in (self.trained, self.averaged.networks):
                networks.load_state_dict(state["average"])
            if self.config.train == "codec":  # an encoder is trained for its own release's codebook
                self.quantizer.load_state_dict(state["quantizer"])
        except RuntimeError as error:
            raise ConfigError(
                f"start_from is {folder}, a run of other networks than train={self.config.train} has here: "
                f"{str(error).splitlines()[1].strip()}"
            ) from error

    def save(self, folder: Path, step: int) -> None:
        """What the run is for, the encoder (of a whole codec, the release too), and then a checkpoint to go on from:
        killed in between, the run makes the encoder again."""
        codec = self.averaged.codec
        heard = self.place * self.config.data.crop_seconds
        about = {"step": step, "audio_seconds": heard, "averaged_weights": True}
        for kind in ("", "_best") if self.best_step == step else ("",):
            if self.config.train == "codec":
                save_release(folder / f"release{kind}", codec, Path(self.config.params))
            save_encoder(folder / f"encoder{kind}.safetensors", codec, about)
        state = {"step": step, "config": dump_config(self.config), **self.state_dict()}
        save_checkpoint(folder / "checkpoints", step, state, self.config.keep, self.best_step)


def build_codec(config: Config, init: str, device: torch.device) -> Codec:
    """The codec to train, in float32: a release's, its encoder new, or one from scratch."""
    if config.train == "codec":
        codec = Codec(CodecConfig.from_params(read_params_file(Path(config.params)))).requires_grad_(False)
        # no language model is trained here: any rows will do that give embeddings the norm of the release's, 3.7
        nn.init.normal_(codec.get_buffer("embedding_table"), std=0.6 * codec.config.embedding_dim**-0.5)
        return codec.to(device)
    # on its device: at the release's dimensions, a start as the inverse takes two CPU cores 13 seconds
    return load_release(config.model_dir, torch.float32, device).with_new_encoder(init)


def try_steps(config: Config, ranks: Ranks) -> None:
    """Two steps on noise with every loss: the second has the optimizers' memory too."""
    training = Training(config, ranks)
    samples = round(config.data.crop_seconds * training.codec.sample_rate)
    every = config.losses.asr_every
    first = -(-config.discriminator.from_step // every) * every
    for step in (first, first + every):
        training.step(0.1 * torch.randn(config.batch_size * config.accumulate, 1, samples, device=ranks.device), step)


def train(config: Config, ranks: Ranks) -> None:
    folder = Path(config.output_dir)
    # where to begin is the first rank's to say: the others may have no part of its disk
    state = load_newest(folder / "checkpoints") if ranks.main else None
    first_step = ranks.largest(state["step"] if state else 0)
    if state:
        check_same_run(state["config"], dump_config(config))
    training = Training(config, ranks, begins=ranks.main and not state and not config.start_from)
    speech = Speech(config, ranks, training.codec.sample_rate)
    if state:
        training.load_state_dict(state)
        # a run that was killed before it deleted them, after its last step, saves no more
        delete_old(folder / "checkpoints", config.keep, training.best_step)
    elif ranks.main and config.start_from:
        training.start_from(Path(config.start_from))
    if ranks.count > 1:
        training.load_state_dict(ranks.from_main(training.state_dict()))

    progress = Progress(folder, first_step, config.steps, speech.seconds_a_step, ranks)
    if ranks.main:
        write_whole(folder / "config.yaml", dump_config(config))
        if config.losses.shaping:
            write_whole(folder / "acoustic_target.json", target_as_json(training.target))
    if ranks.main and first_step == 0:
        training.validate(speech.validation, 0, progress)

    # signals are taken before the loader's workers start, who inherit this
    with StopRequest() as stop, closing(speech.batches(training.place)) as batches:
        for step in range(first_step, config.steps):
            with progress.waiting():
                batch = next(batches)
            progress.count("skipped", batch.skipped)
            progress.count("kept", batch.kept)
            training.watch.heard(step, batch.names)
            on_device = training.step(batch.waveform.to(ranks.device, non_blocking=True), step)
            progress.advance()
            done = step + 1
            stopped = ranks.largest(stop.number)
            log = done % config.log_every == 0
            validate = done % config.validate_every == 0 or done == config.steps
            save = done % config.save_every == 0 or done == config.steps or stopped
            if log or validate or save:
                progress.count_all()
                broken = [one for one in ranks.collect(training.watch.broken()) if one]
                if log:
                    metrics = over_ranks(on_device | training.latest.mean_shares(), ranks)
                    seen = ranks.gather(training.entries_seen[None]).any(dim=0).sum()
                    training.entries_seen.zero_()
                    progress.log(done, {**metrics, "sem_util": int(seen), "learning_rate": learning_rate(step, config)})
                    for text in training.warnings.of(done, metrics, training.learning()):
                        progress.say(text)
                if broken:
                    first = min(broken, key=lambda one: (one.step, one.behind))
                    raise TrainingError(f"{first}; nothing of it was saved, go on from the last checkpoint in {folder}")
            if validate or save:
                with progress.paused():
                    ranks.check_same(training.state_dict())
                    better = ranks.main and validate and training.validate(speech.validation, done, progress)
                    if ranks.main and (save or better):
                        training.save(folder, done)
                    ranks.wait()  # for the first one's reports, as long as they take
            if stopped:
                raise StoppedError(stopped, done)
    progress.close(config, training.best_step, training.best_mel)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/v3.yaml", help="a YAML file of settings (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a setting to change")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.overrides)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with start_ranks() as ranks, explained(config, ranks, lambda other: try_steps(other, ranks)):
            train(config, ranks)
    except StoppedError as stop:
        print(f"{stop}: the same command goes on", file=sys.stderr)
        return stop.status
    except ERRORS as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"{error.filename or config.output_dir}: {error.strerror}"
    else:
        return 0
    print(f"error: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    leave(main())
