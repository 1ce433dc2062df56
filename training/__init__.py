"""What a training run needs around its step: configuration, ranks, checkpoints, metrics."""
