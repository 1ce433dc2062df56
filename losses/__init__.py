"""The training losses, one a file, and the balancer that weighs them by gradient.

balancer.py       gives each loss its share of the gradient; fixed weights for comparison
mel.py            log-mel distance of waveforms, in training and in evaluation
stft.py           STFT magnitude distance of waveforms
discriminator.py  multi-resolution STFT discriminator, hinge loss and feature matching
discriminator_gradients.py  both losses' gradients, as a training step computes them
discriminator_passes.py, discriminator_kernels.py  what comes between two convolutions there; for a GPU
speaker.py        cosine distance of speaker embeddings (ECAPA-TDNN)
commitment.py     keeps semantic latents near their codebook entries
diversity.py      keeps many codebook entries in use
inversion.py      finds again the codes that the decoder was given
pseudo_labels.py  finds the codes that a network which learned from pairs reads from Whisper's states
codebook.py       distances of latents to the codebook's entries
shaping.py        gives acoustic codes the distribution of the release's preset voices
asr/              ASR distillation from a frozen Whisper
frames.py         averages over the frames inside a padded clip
resampling.py     resamples to 16 kHz for the frozen networks
"""

from system.signals import end_on_signals, runs_as_module

if runs_as_module():  # Ctrl-C during the imports of `python -m losses.asr.whisper_weights`
    end_on_signals()

from losses.balancer import Balancer, FixedWeights
from losses.commitment import commitment
from losses.diversity import Diversity
from losses.inversion import Inversion
from losses.mel import MelDistance
from losses.pseudo_labels import PseudoLabels
from losses.stft import STFTDistance

__all__ = [
    "Balancer",
    "Diversity",
    "FixedWeights",
    "Inversion",
    "MelDistance",
    "PseudoLabels",
    "STFTDistance",
    "commitment",
]
