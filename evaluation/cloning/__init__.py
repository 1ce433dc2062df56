"""Measures cloning where it happens: a server speaks new sentences in the voices of clips, and judges listen.

prompts.py    what is spoken: pairs of a text and a reference clip, from data or from a list
speaking.py   asks the servers; keeps the wav files, so that a stopped run resumes
listening.py  what the judges find in each recording; kept too
scoring.py    metrics from what the judges found
measure.py    one whole evaluation, into `CloningResults`
results.py    everything that was measured, its JSON and its text
page.py       the page to listen to
"""
