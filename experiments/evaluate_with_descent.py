"""evaluate_encoder.py with one more system: codes found by gradient descent on each clip's latents, without an encoder.

    python -m experiments.evaluate_with_descent --encoder FILE --against FILE --descent-steps 300 --descent-clips 8

All other options are those of evaluate_encoder.py. In the table, the JSON and the report, the system is
called "descent".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import Tensor

import evaluate_encoder
from codec import Codec
from data import DataError
from evaluation.measure import ExtraSystem, Options
from evaluation.scoring import Progress
from evaluation.speech import Problem, Speech, spread
from experiments.latent_descent import STEPS, LatentDescent
from losses.speaker import PUBLISHED, SpeakerDistance, SpeakerModelError
from system.arguments import whole_number

NAME = "descent"


class DescentSystem(ExtraSystem):
    """The speech's codes by LatentDescent, for `clips` of the clips, spread over all (0: for all)."""

    name = NAME

    def __init__(self, steps: int, clips: int):
        self.steps, self.clips = steps, clips
        self.settings = {"steps": steps, "clips": clips or "all"}

    def prepare(self, codec: Codec, options: Options) -> None:
        """Uses the speaker loss unless the ECAPA judge is left out. Raises DataError if its network is missing."""
        speaker = None
        if "ecapa" not in options.without:
            try:
                speaker = SpeakerDistance(options.speaker_model or PUBLISHED, codec.sample_rate, options.cache)
            except SpeakerModelError as error:
                raise DataError(f"descent: {error}; --without ecapa works without this network") from error
        self.descent = LatentDescent(codec, speaker, self.steps, options.seed)

    def codes(self, speech: Sequence[Speech], progress: Progress) -> tuple[list[Tensor | None], list[Problem]]:
        chosen = spread(self.clips or len(speech), len(speech))
        short = [i for i in chosen if len(speech[i].waveform) < self.descent.shortest]
        reason = f"too short for its losses, expected {self.descent.shortest} samples or more"
        problems = [Problem(speech[i].name, "clip", reason, NAME) for i in short]
        chosen = [i for i in chosen if i not in short]
        found, failed = self.descent.find([speech[i].waveform for i in chosen], progress)
        problems += [Problem(speech[chosen[k]].name, "clip", reason, NAME) for k, reason in failed.items()]
        by_clip = {chosen[k]: codes for k, codes in found.items()}
        return [by_clip.get(i) for i in range(len(speech))], problems


def main(argv: Sequence[str] | None = None) -> int:
    parser = evaluate_encoder.build_parser(__doc__)
    parser.add_argument(
        "--descent-steps", type=whole_number, default=STEPS, metavar="STEPS", help="default: %(default)s"
    )
    parser.add_argument(
        "--descent-clips",
        type=whole_number,
        default=0,
        metavar="N",
        help="only N clips (default: all)",
    )
    arguments = parser.parse_args(argv)
    return evaluate_encoder.run(arguments, [DescentSystem(arguments.descent_steps, arguments.descent_clips)])


if __name__ == "__main__":
    sys.exit(main())
