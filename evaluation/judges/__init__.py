"""The judges: each scores a reconstruction, most of them against its original.

judge.py      what a metric, a measurement and a judge are
quality.py    mel and STFT distance, level above 8 kHz, PESQ, ESTOI, DistillMOS
words.py      word and character errors, by Whisper
speakers.py   speaker similarity, by Resemblyzer, ECAPA-TDNN and WavLM
available.py  opens the judges whose library and weights are here, with a reason for each other one
pool.py       runs them, in this process or in several
"""
