"""A small metrics.jsonl, as a training run writes it."""

METRICS = """\
{"step": 10, "mel": 3.0, "share/mel": 0.7, "share/l1": 0.3, "learning_rate": 0.001, "skipped_clips": 0}
{"step": 10, "share_latent/commitment": 0.1, "validation/mel": 3.5, "validation/acoustic_at_ends": 0.1}
{"step": 20, "mel": 2.0, "share/mel": 0.6, "share/l1": 0.4, "learning_rate": 0.001, "skipped_clips": 0}
{"step": 20, "mel": 2.1, "share/mel": 0.6, "share/l1": 0.4, "learning_rate": NaN, "skipped_clips": 0}
"""
