"""The lens: what training does to each token of a few answers, for any number of algorithms side by side.

look.py asks a training stage's own verbs, without an update; picture.py holds what they said as plain numbers.
compare.py does it for several algorithms on the same answers, kept.py every few steps of a training stage (lens.jsonl,
read by read.py), of_run.py for the model of a run; example.py is the example that needs no data. pack.py and page.py
make one HTML file of it, terminal.py a view for the terminal. What imports torch is loaded when a command needs it.
"""
