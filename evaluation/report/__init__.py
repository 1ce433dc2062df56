"""The HTML report: one page to listen to, which opens from disk without a network.

page.py             gathers what the page shows. base.html is its frame; encoder.html and cloning.html extend it
charts.py           histograms and curves, as SVG
training_curves.py  the curves of a training run's metrics.jsonl
spectrograms.py     audio, spectrograms and code rasters, as data URLs
"""
