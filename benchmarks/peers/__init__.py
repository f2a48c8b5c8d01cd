"""Other people's ways to choose the same batch, each in an environment of its own, beside ours in one run.

usage: python -m benchmarks.peers [--help]

One file per peer with the peer's name; each runs in the peer's environment, where dal_native is not
installed, takes the problem from .npy files (`exchange`) and answers in JSON. `environments` makes the
environments, `side_by_side` runs the pairs.
"""
