"""submodlib's LogDeterminant with lazy greedy: a dense n x n kernel of whitened, weighted rows, 1 added to
its diagonal.

log det(K_S + I) is the gain of the batch S. The kernel is made and handed over as Python lists before the
clock starts.
"""

from benchmarks.peers import exchange


def prepare(given: exchange.Given):
    from submodlib import LogDeterminantFunction

    f = given.features("float64")
    function = LogDeterminantFunction(n=len(f), mode="dense", lambdaVal=1, sijs=f @ f.T)
    return lambda: [
        int(i) for i, _ in function.maximize(budget=given.size, optimizer="LazyGreedy", show_progress=False)
    ]


if __name__ == "__main__":
    exchange.serve(prepare, "submodlib-py", "submodlib")
