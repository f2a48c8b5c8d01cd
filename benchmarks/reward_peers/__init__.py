"""Other people's ways to learn a reward (and its teachers) from answers, each in an environment of its own,
beside ours in one run.

usage: python -m benchmarks.reward_peers [--help]

One file per peer with the peer's name; it runs in the peer's environment, takes a problem (`problems`) from
.npy files and answers in JSON; the machinery is that of `benchmarks.peers`. `simulated` makes crowds whose
truth is known, `recorded` reads the votes of real teachers, `target` is the one timing that has a target.
"""
