"""Programs that produce the project's evidence. README.md in this folder says which one answers which question."""

from system.signals import end_on_signals, runs_as_module

if runs_as_module():  # Ctrl-C during the imports of `python -m experiments.X`
    end_on_signals()
