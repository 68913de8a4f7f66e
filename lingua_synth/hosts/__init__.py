"""Training loops of other people with our data, model sizes and evaluation: Meta Lingua's (`lingua.py`).

`lingua.py` is the only file of this library that imports Meta Lingua. The rest of the room knows it by what it is
handed: `session.py` is our side of one run, `loss_head.py` the loss inside its model, `checkpoints.py` what is written
and resumed, `corrections.py` the list of upstream defects that are corrected, `fingerprint.py` which Lingua is known,
`plain.py` and `resolve.py` our configuration in its words.
"""
