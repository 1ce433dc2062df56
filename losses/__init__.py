"""One loss a file, and the balancer that weighs them by gradient."""

from losses.balancer import Balancer, FixedWeights
from losses.commitment import commitment
from losses.diversity import Diversity
from losses.mel import MelDistance
from losses.stft import STFTDistance

__all__ = ["Balancer", "Diversity", "FixedWeights", "MelDistance", "STFTDistance", "commitment"]
