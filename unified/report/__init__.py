"""The report of a run: one HTML file from what the run wrote, or served while it goes on. Imports no torch.

read.py reads the files of a stage, however they end; curves.py thins them out; names.py says what metrics are measured
in; stage.py and collect.py make the data of the page; page.py writes it; watch.py serves it.
"""
