"""Trains the encoder that a Voxtral release lacks, against its frozen decoder.

    python train_encoder.py --config configs/demo.yaml                     # two CPU cores, minutes
    MODEL_DIR=... torchrun --nproc_per_node=4 train_encoder.py             # four GPUs, configs/v3.yaml
    python train_encoder.py --config configs/codec.yaml                    # a whole codec, from scratch
    python train_encoder.py --config configs/v3.yaml steps=1000 losses.mel=2

Settings are in the YAML files; `key=value` changes one. Repeat a command to resume from the newest checkpoint in
`output_dir`. The run writes `encoder.safetensors` there, which inject_encoder.py puts into the release.

    waveform -> encoder -> latent -> quantizer -> decoder (frozen) -> reconstruction
                             |                                              |
              losses on the latent  <---- one backward ----  losses on the reconstruction

The graph is cut at the latent and at the reconstruction. Each loss is differentiated where it meets the others, and a
balancer turns weights into shares of the gradient there. `Trainer.backward` is this picture in code.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from system.signals import end_on_signals

    end_on_signals()

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from data.pairs import PairBatch
from losses import Balancer, Diversity, FixedWeights, Inversion, MelDistance, PseudoLabels, STFTDistance, commitment
from losses.codebook import codebook_spacing
from losses.discriminator_gradients import discriminator_gradients
from losses.shaping import Shaping, target_as_json, voices_target
from losses.speaker import SpeakerDistance
from system.arguments import positive
from system.command import UserError, exit_status
from system.files import write_whole
from system.signals import StoppedError, StopRequest
from training.auxiliary import (
    AuxiliaryNetwork,
    build_asr_projection,
    build_discriminator,
    build_labeller,
    load_teacher,
)
from training.checkpoints import newest_step
from training.config import Config, dump_config, load_config
from training.dataset import TrainingData
from training.distributed import Ranks, exit_process, start_ranks
from training.memory import checkpoint_activations, explain_full_memory
from training.metrics import RunningMetrics, combine, combine_over_ranks
from training.monitoring import NonFiniteMonitor, TrainingWarnings, in_parts, not_finite
from training.optimization import EMA, adam, learning_rate
from training.output_lock import sole_run
from training.pairs import PairDecoder
from training.profile import first_full_step, profile
from training.progress import Progress
from training.same_run import check_same_settings
from training.self_training import Labelling, SecondPass
from training.state import TrainingState, build_codec, newest_checkpoint
from training.step_inputs import StepInputs, discriminator_samples, graphed_on_gpu, noise_for, step_inputs
from training.validation import validate

ON_RECONSTRUCTION = ("mel", "l1", "stft", "feature_matching", "speaker")
ON_LATENT = ("commitment", "asr", "diversity", "shaping", "inversion", "second_pass", "pseudo_labels")


class TrainingError(UserError):
    """The run cannot go on. The message says why, and what to do."""


class Trainer:
    """Networks, losses, optimizers and one training step. With `initialize=False` the encoder starts at random, because
    the caller loads a state afterwards."""

    def __init__(self, config: Config, ranks: Ranks, initialize: bool = True):
        self.config, self.ranks, weights = config, ranks, config.losses
        self.graphed_compute = graphed_on_gpu(self.compute, config, ranks)
        self.bf16 = config.precision == "bf16" and ranks.device.type == "cuda"
        torch.manual_seed(config.seed)

        # the codec, and the EMA of the weights that learn
        self.codec = build_codec(config, config.init if initialize else "random", ranks.device)
        names = ("encoder", "decoder") if config.train == "codec" else ("encoder",)
        self.trained = nn.ModuleDict({name: self.codec.get_submodule(name) for name in names}).requires_grad_(True)
        self.ema = EMA(self.codec, names, config.optimizer.ema_decay)
        self.encoder, self.decoder = self.codec.get_submodule("encoder"), self.codec.decoder
        self.quantizer = self.codec.quantizer
        betas = (config.optimizer.beta1, config.optimizer.beta2)
        self.optimizer = adam(self.trained.parameters(), config.optimizer.lr, betas, ranks.device)

        # networks that learn beside the codec
        self.auxiliary: dict[str, AuxiliaryNetwork] = {}
        if weights.feature_matching:
            self.discriminator = self.auxiliary["discriminator"] = build_discriminator(config, ranks)
        dims = self.codec.config
        if weights.asr or weights.pseudo_labels:
            self.asr_teacher = load_teacher(config, ranks)
        if weights.asr:
            self.asr_projection = build_asr_projection(config, ranks, dims.semantic_dim, self.asr_teacher.width)
            self.auxiliary["asr projection"] = self.asr_projection
        if weights.pseudo_labels:
            self.labeller = build_labeller(config, ranks, self.asr_teacher.width, dims.semantic_dim)
            self.auxiliary["labeller"] = self.labeller

        # losses on the latent; `commitment` is a function
        self.diversity = Diversity(weights.diversity_temperature)
        # a release's codebook stays as it is, so its spacing is computed once
        frozen = weights.diversity and config.train == "encoder"
        self.codebook_spacing = codebook_spacing(self.quantizer.semantic_codebook.embedding) if frozen else None
        if weights.shaping:
            self.shaping_target = voices_target(self.codec, Path(config.model_dir) / "voice_embedding")
            self.shaping = Shaping(self.shaping_target).to(ranks.device)
        if weights.inversion:
            samples = round(config.data.crop_seconds * self.codec.sample_rate)
            self.pair_decoder = PairDecoder(self.codec, samples, self.bf16)
            self.inversion = Inversion(self.quantizer, weights.inversion_temperature)
        if weights.second_pass:
            self.second_pass = SecondPass(self.codec, self.autocast)
        if weights.pseudo_labels:
            self.pseudo_labels = PseudoLabels(self.quantizer, weights.inversion_temperature)
            self.labelling = Labelling(self.asr_teacher, self.labeller, self.pseudo_labels, ranks)
        # losses on the reconstruction
        if weights.mel:
            self.mel = MelDistance(self.codec.sample_rate, weights.mel_offset).to(ranks.device)
        if weights.stft:
            self.stft = STFTDistance().to(ranks.device)
        if weights.speaker:
            self.speaker = SpeakerDistance(weights.speaker_model, self.codec.sample_rate, config.hf_cache)
            self.speaker.to(ranks.device)

        on_reconstruction = {name: getattr(weights, name) for name in ON_RECONSTRUCTION if getattr(weights, name)}
        on_latent = {name: getattr(weights, name) for name in ON_LATENT if getattr(weights, name)}
        # What the decoder sends back is one more gradient at the latent. With fixed weights it is already weighted;
        # `accumulate` cancels the averaging over parts.
        on_latent["reconstruction"] = sum(on_reconstruction.values()) if weights.balanced else config.accumulate
        balancer = Balancer if weights.balanced else FixedWeights
        self.waveform_balancer = balancer(on_reconstruction, decay=weights.balancer_decay)
        self.latent_balancer = balancer(on_latent, decay=weights.balancer_decay)

        if config.activation_checkpointing:
            checkpoint_activations(self.codec)
        self.state = TrainingState(
            *(config, ranks, self.codec, self.trained, self.ema, self.optimizer, self.auxiliary),
            *(self.waveform_balancer, self.latent_balancer),
        )
        self.metrics, self.monitor = RunningMetrics(), NonFiniteMonitor(config.log_every)
        self.entries_seen = torch.zeros(self.codec.config.semantic_codebook_size, dtype=torch.bool, device=ranks.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.bf16)

    def step(
        self, waveform: Tensor, step: int, pairs: PairBatch | None = None, languages: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """One step on this rank's crops [B, 1, T], in their languages [B], and crops of pairs, in `accumulate` parts.
        Returns metrics, on the device."""
        losses = self.losses_of(step)
        spoken = languages or [""] * len(waveform)
        numbers = self.asr_teacher.numbered_languages(spoken) if self.config.losses.asr else None
        labeller = self.labeller.network if self.config.losses.pseudo_labels else None
        inputs = step_inputs(self.config, self.ranks, self.codec, waveform, step, pairs, numbers, labeller)
        metrics, flags = self.graphed_compute(inputs, losses)
        self.monitor.observe(step, flags)
        self.ema.update(step)
        self.state.clips_seen += len(waveform) * self.ranks.world_size
        return self.metrics.update(metrics)

    def losses_of(self, step: int) -> frozenset[str]:
        """The losses of this step among those that skip steps."""
        weights = self.config.losses
        options = self.config.discriminator
        matched = weights.feature_matching and step >= options.start_step and step % options.every == 0
        distilled = weights.asr and step % weights.asr_every == 0
        return frozenset({"feature_matching"} if matched else ()) | frozenset({"asr"} if distilled else ())

    def compute(self, inputs: StepInputs, losses: frozenset[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients of all parts, then one update of every network. Returns metrics and flags of crops [B] whose
        gradients are not finite."""
        for optimizer in (self.optimizer, *(network.optimizer for network in self.auxiliary.values())):
            optimizer.zero_grad(set_to_none=True)
        for group in self.optimizer.param_groups:
            on_gpu = inputs.learning_rate.is_cuda
            group["lr"] = inputs.learning_rate if on_gpu else float(inputs.learning_rate)
        results = [self.backward(inputs, losses, part) for part in range(self.config.accumulate)]
        metrics, flags = zip(*results, strict=True)
        self.ranks.average_gradients(self.trained.parameters())

        norms = {
            f"gradient_norm/{name}": nn.utils.clip_grad_norm_(network.parameters(), self.config.optimizer.clip_norm)
            for name, network in self.trained.items()
        }
        self.optimizer.step()
        auxiliary = {f"gradient_norm/{name}": network.update() for name, network in self.auxiliary.items()}
        norms |= {name: norm for name, norm in auxiliary.items() if norm is not None}
        # a network's gradient can overflow where all losses are finite; nobody knows for which crop
        items = len(inputs.waveform) + len(inputs.pair_codes)
        overflown = not_finite({name: norm.expand(items, 1) for name, norm in norms.items()})
        return combine(metrics) | norms, {n: torch.cat([flag[n] for flag in flags]) for n in flags[0]} | overflown

    def backward(
        self, inputs: StepInputs, losses: frozenset[str], part: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Adds the gradients of one part of a step's crops to every network. Returns its metrics and flags."""
        weights = self.config.losses
        parts = self.config.accumulate
        batch, waveform = len(inputs.waveform), inputs.waveform.chunk(parts)[part]
        samples, semantic_dim = waveform.shape[-1], self.codec.config.semantic_dim

        # encoder -> quantizer -> decoder; the graph is cut at the latent and at the reconstruction
        sound = waveform
        if weights.inversion:  # behind the speech, the decoder's sound of codes that the encoder has to find again
            pairs = self.pair_decoder(inputs.pair_codes.chunk(parts)[part], inputs.pair_begins.chunk(parts)[part])
            sound = torch.cat([waveform, pairs.waveform])
        with self.autocast():
            encoded = self.encoder(sound)
        latent = encoded.detach().float().requires_grad_()  # [B, 292, F]
        of_speech, of_pairs = latent[: len(waveform)], latent[len(waveform) :]
        semantic, acoustic = of_speech[:, :semantic_dim], of_speech[:, semantic_dim:]
        draw = inputs.draw.part(part, parts) if self.config.stochastic else None
        quantized = self.quantizer(of_speech, draw)
        with self.autocast():
            decoded = self.decoder(quantized.latent)
        reconstruction = decoded.detach().float()[..., :samples].requires_grad_()  # [B, 1, T]

        # losses on the reconstruction, each differentiated there; the discriminator comes first because it has the
        # largest tensors, and the others fit into the memory that it leaves
        values: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        at_waveform: dict[str, Tensor] = {}
        if "feature_matching" in losses:  # the discriminator learns here too, by its hinge loss
            heard = discriminator_samples(self.config, samples, self.codec.sample_rate)
            begins = inputs.discriminator_begins.chunk(parts)[part]
            places = begins[:, None, None] + torch.arange(heard, device=begins.device)  # [B, 1, samples]
            original, fake = waveform.gather(-1, places), reconstruction.detach().gather(-1, places)
            with self.autocast():
                found = discriminator_gradients(self.discriminator.network, original, fake)
            at_waveform["feature_matching"] = torch.zeros_like(waveform).scatter(-1, places, found.at_reconstruction)
            metrics["feature_matching"], metrics["discriminator"] = found.matching, found.hinge
            self.discriminator.add_gradients(found.of_parameters)
            del found
        if weights.mel:
            values["mel"] = self.mel(reconstruction, waveform)
        if weights.l1:
            values["l1"] = nn.functional.l1_loss(reconstruction, waveform)
        if weights.stft:
            values["stft"] = self.stft(reconstruction, waveform)
        if weights.speaker:
            values["speaker"] = self.speaker(reconstruction, waveform)
        at_waveform = gradients(values, reconstruction) | at_waveform
        metrics |= detach_all(values)  # lets the losses' graphs go

        # one backward through the decoder; balanced norms are per item, so the batch's gradient is their mean
        fading = {"l1": inputs.l1_stft_factor, "stft": inputs.l1_stft_factor}
        balanced = self.waveform_balancer.combine(at_waveform, fading)
        decoded[..., :samples].backward(balanced.to(decoded.dtype) / batch)
        assert latent.grad is not None

        # losses on the latent, each differentiated there, and what came back through the decoder
        factors: dict[str, Tensor] = {}
        if weights.commitment:
            values["commitment"] = commitment(semantic, quantized.semantic)
        if "asr" in losses:
            targets = self.asr_teacher.targets(waveform[:, 0], languages=inputs.languages.chunk(parts)[part])
            values["asr"] = self.asr_projection.network(targets, quantized.semantic)
            metrics["asr_silent_clips"] = targets.clips_without_speech.float()
        if weights.diversity:
            entries = self.quantizer.semantic_codebook.embedding
            values["diversity"] = self.diversity(semantic, entries, self.codebook_spacing)
        if weights.shaping:
            values["shaping"] = self.shaping(acoustic)
        if weights.inversion:
            whole_frames = of_pairs[..., : pairs.codes.shape[-1]]
            values["inversion"], shares = self.inversion(whole_frames, pairs.codes, pairs.counted)
            metrics |= shares
        if weights.second_pass:
            again, counted = self.second_pass(reconstruction)
            values["second_pass"], shares = self.inversion(of_speech[..., : again.shape[-1]], again, counted)
            metrics |= {name.replace("found", "steady"): share for name, share in shares.items()}
        if weights.pseudo_labels:
            dropping = inputs.labeller_draw.chunk(parts)[part]
            labels = self.labelling(sound, pairs, metrics["found/semantic"], dropping)
            values["pseudo_labels"] = self.pseudo_labels(semantic, labels.of_speech)
            factors["pseudo_labels"], metrics["found/labeller"] = labels.weight, labels.found
        at_latent = {**gradients(values, latent), "reconstruction": latent.grad}
        if "asr" in losses:  # the projection learns here, from the same loss as the encoder
            self.asr_projection.backward(values["asr"])
        if weights.pseudo_labels:  # the labeller learns from pairs only
            self.labeller.backward(labels.learned)
        metrics |= detach_all(values)

        # one backward through the encoder
        encoded.backward(self.latent_balancer.combine(at_latent, factors).to(encoded.dtype) / (len(latent) * parts))

        if self.config.train == "codec":
            self.quantizer.semantic_codebook.learn(semantic.detach(), quantized.codes[:, :1], inputs.seeds)
        self.entries_seen.index_fill_(0, quantized.codes[:, 0].flatten(), True)
        levels = quantized.codes[:, 1:].float()
        metrics |= {f"share/{name}": share for name, share in self.waveform_balancer.shares.items()}
        metrics |= {f"share_latent/{name}": share for name, share in self.latent_balancer.shares.items()}
        metrics |= {"acoustic_min": levels.min(), "acoustic_mean": levels.mean(), "acoustic_max": levels.max()}
        return metrics, not_finite(at_waveform | at_latent, len(latent))

    def validate(self, clips: Tensor, step: int, progress: Progress) -> bool:
        """Reports the EMA encoder's metrics on clips [N, 1, T]. Returns whether it is the best so far."""
        result = validate(self.ema.codec, clips, self.config.batch_size, self.autocast)
        progress.log_validation(step, result, clips, self.codec.sample_rate)
        better = step > 0 and result.metrics["mel"] < self.state.best_mel
        if better:
            self.state.best_step, self.state.best_mel = step, result.metrics["mel"]
        return better


def gradients(values: dict[str, Tensor], at: Tensor) -> dict[str, Tensor]:
    """The gradient of each loss at one tensor. Keeps the graphs."""
    found = {}
    for name, value in values.items():
        found[name] = torch.autograd.grad(value, at, retain_graph=True)[0]
    return found


def detach_all(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses' values without their graphs. Empties `values`."""
    detached = {name: value.detach() for name, value in values.items()}
    values.clear()
    return detached


def try_steps(config: Config, ranks: Ranks) -> None:
    """Two steps on noise with every loss; from the second on the optimizers have their memory too."""
    trainer, first = Trainer(config, ranks), first_full_step(config)
    waveform, pairs = noise_for(config, trainer.codec)
    for step in (first, first + config.cycle):
        trainer.step(waveform, step, pairs)


def train(config: Config, ranks: Ranks) -> None:
    folder = Path(config.output_dir)
    checkpoint, first_step = newest_checkpoint(config, ranks)
    trainer = Trainer(config, ranks, initialize=ranks.main and not checkpoint and not config.start_from)
    data = TrainingData(config, ranks, trainer.codec)
    trainer.state.restore(checkpoint, len(data.crops))
    progress, warnings = Progress(folder, first_step, config.steps, data.seconds_a_step, ranks), TrainingWarnings()
    if ranks.main:
        write_whole(folder / "config.yaml", dump_config(config))
        if config.losses.shaping:
            write_whole(folder / "acoustic_target.json", target_as_json(trainer.shaping_target))
    if ranks.main and first_step == 0:
        trainer.validate(data.validation, 0, progress)

    # StopRequest comes first: the loader's workers inherit its signal handlers
    with StopRequest() as stop, closing(data.batches(trainer.state.clips_seen)) as batches:
        for step in range(first_step, config.steps):
            with progress.waiting():
                batch, pairs = next(batches), data.pairs(step)
            progress.count("skipped", batch.skipped)
            progress.count("kept", batch.kept)
            names = in_parts(batch.names, pairs.names if pairs else (), config.accumulate)
            trainer.monitor.note_clips(step, names)
            waveform = batch.waveform.to(ranks.device, non_blocking=True)
            on_device = trainer.step(waveform, step, pairs, batch.languages)
            progress.advance()
            done = step + 1
            stopped = ranks.largest(stop.number)
            log = done % config.log_every == 0
            validating = done % config.validate_every == 0 or done == config.steps
            saving = done % config.save_every == 0 or done == config.steps or stopped
            if log or validating or saving:
                progress.count_all()
                found = [one for one in ranks.gather_objects(trainer.monitor.found()) if one]
                if log:
                    metrics = combine_over_ranks(on_device | trainer.metrics.mean_shares(), ranks)
                    seen = ranks.gather(trainer.entries_seen[None]).any(dim=0).sum()
                    trainer.entries_seen.zero_()
                    rate = learning_rate(step, config.steps, config.optimizer)
                    progress.log(done, {**metrics, "sem_util": int(seen), "learning_rate": rate})
                    for text in warnings.after(done, metrics, trainer.state.networks()):
                        progress.say(text)
                if found:  # NaN or infinity stops the run; nothing of it is saved
                    first = min(found, key=lambda one: (one.step, one.only_downstream))
                    raise TrainingError(f"{first}; nothing was saved, resume from the last checkpoint in {folder}")
            if validating or saving:
                with progress.paused():
                    ranks.check_same(trainer.state.state_dict())
                    better = ranks.main and validating and trainer.validate(data.validation, done, progress)
                    if ranks.main and (saving or better):
                        trainer.state.save(done)
                    ranks.barrier()  # the other ranks wait for rank 0's reports, however long they take
            if stopped:
                raise StoppedError(stopped, done)
    progress.close(config, trainer.state.best_step, trainer.state.best_mel)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/v3.yaml", help="a YAML file of settings (default: %(default)s)")
    parser.add_argument(
        "--profile", type=positive, metavar="N", help="show what a step's statements cost, over N steps"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a setting to change")
    arguments = parser.parse_intermixed_args()

    def run() -> int:
        config = load_config(arguments.config, arguments.overrides)
        saved_step = newest_step(Path(config.output_dir) / "checkpoints")
        with (
            start_ranks(saved_step) as ranks,
            explain_full_memory(config, ranks, lambda other: try_steps(other, ranks)),
        ):
            check_same_settings(config, ranks)
            if arguments.profile:
                table = profile(Trainer(config, ranks), arguments.profile)
                if ranks.main:
                    print(table)
            else:
                with sole_run(Path(config.output_dir), ranks):
                    train(config, ranks)
        return 0

    return exit_status(run, "repeat the command to resume", when_refused="", at_once=True)


if __name__ == "__main__":
    exit_process(main())
