"""Programs that produce the project's evidence. README.md in this folder says which one answers which question."""

import sys

if sys.argv[:1] == ["-m"]:  # Ctrl-C during the imports of `python -m experiments.X`
    from system.signals import end_on_signals

    end_on_signals()
