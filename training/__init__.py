"""What a training run needs around its step, which is in train_encoder.py.

config.py        the settings: YAML, environment, command line
settings_file.py, setting_values.py   a YAML file as text values; a text as a number, a switch or a path
dataset.py       batches of crops, and the validation clips
step_inputs.py   what differs from step to step, and the CUDA graph of a step
self_training.py what speech is taught: by a second pass, and by the labeller
auxiliary.py     the discriminator, the ASR projection and the labeller, which learn beside the codec
optimization.py  Adam, the learning-rate schedule, the EMA of the weights
state.py         everything that learns: start, resume, save
checkpoints.py   checkpoint folders, written whole and checked when read
same_run.py      whether a checkpoint is of the run that is started
output_lock.py   one run at a time in an OUTPUT_DIR
validation.py    metrics of the EMA encoder on fixed clips
metrics.py       metrics of parts and ranks, combined
monitoring.py    gradients that are not finite, and warnings
progress.py      terminal, metrics.jsonl, TensorBoard, names of skipped clips
profile.py       what each statement of a step costs
memory.py        activation checkpointing, and advice when memory is full
distributed.py   the ranks: under `python` one, under `torchrun` many
"""
