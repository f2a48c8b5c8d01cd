"""What the package does to its process: import, fork, signals, threads, floating-point mode."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import dal_native as dn
from dal_native import testing as t


def test_import_is_quick_and_light(run_python):
    """Under 0.3 s beyond numpy and scipy.linalg; no heavy module comes along."""
    script = """
        import sys, time
        import numpy, scipy.linalg
        start = time.perf_counter()
        import dal_native
        seconds = time.perf_counter() - start
        heavy = {"torch", "numba", "matplotlib", "click", "tqdm", "pandas", "sklearn", "pyarrow", "jinja2",
                 "transformers", "safetensors", "dal_learn", "ml_dtypes", "scipy.sparse", "scipy.stats"}
        print(seconds, *sorted(heavy & set(sys.modules)))
    """
    alone = run_python("import sys, numpy, scipy.linalg; print(*sorted(sys.modules))").split()
    runs = [run_python(script).split() for _ in range(3)]
    assert min(float(run[0]) for run in runs) < 0.3
    assert set(runs[0][1:]) <= set(alone)


def test_import_and_use_leave_the_floating_point_mode_alone(run_python):
    """Subnormals survive (no flush to zero), rounding is to nearest, error flags do not warn."""
    script = """
        import threading
        import numpy as np

        def mode():
            tiny64, tiny32 = np.array([5e-324, 1e-310]), np.array([1e-45, 1e-40], np.float32)
            third = np.array([1.0]) / np.array([3.0])
            return (tiny64 * 1.0).tobytes() + (tiny32 * np.float32(1)).tobytes() + third.tobytes()

        before = mode()
        import dal_native as dn
        assert mode() == before, "import"
        x = np.random.default_rng(0).standard_normal((5000, 32))
        for backend in ("reference", "cpu"):
            M = dn.information_matrix(x, 0.1, backend=backend, threads=4)
            dn.select_batch(x, x[0], [1.0, 2.0], M, 10, backend=backend, threads=4)
        assert mode() == before, "use"
        found = []
        thread = threading.Thread(target=lambda: found.append(mode()))
        thread.start(); thread.join()
        assert found == [before], "new thread"
        print("same")
    """
    assert run_python(script) == "same\n"


FORK = """
    import os, signal, sys
    import numpy as np
    import dal_native as dn

    backend = sys.argv[1] if len(sys.argv) > 1 else os.environ["BACKEND"]
    x = np.random.default_rng(0).standard_normal((20000, 48))
    pool = dn.Pool(x)
    M = dn.information_matrix(pool, 0.1, backend=backend, threads=4)
    expected = dn.leverage(pool, M, backend=backend, threads=4).tobytes()
    batch = dn.select_batch(pool, x[0], [1.0, 2.0], M, 5, backend=backend, threads=4)
    picks = batch.conversation.tobytes() + batch.gain.tobytes()
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)  # a child that hangs is killed, and fails the test
            same = dn.leverage(pool, M, backend=backend, threads=4).tobytes() == expected
            again = dn.select_batch(pool, x[0], [1.0, 2.0], M, 5, backend=backend, threads=4)
            same &= again.conversation.tobytes() + again.gain.tobytes() == picks
            grandchild = os.fork()
            if grandchild == 0:
                signal.alarm(20)
                os._exit(0 if dn.leverage(pool, M, backend=backend, threads=2).tobytes() == expected else 1)
            same &= os.waitpid(grandchild, 0)[1] == 0
            os._exit(0 if same else 1)
        children.append(pid)
    # the parent goes on meanwhile
    assert dn.leverage(pool, M, backend=backend, threads=4).tobytes() == expected
    print([os.waitpid(pid, 0)[1] for pid in children])
"""


def test_children_of_fork_use_the_pool(run_python, backend):
    """A forked child, and its child, call operations after the parent has used its threads."""
    assert run_python(FORK, BACKEND=backend) == "[0, 0, 0]\n"


def test_fork_while_another_thread_computes(run_python, backend):
    """The child must not wait for a lock or a thread that did not survive the fork."""
    script = """
        import os, signal, threading
        import numpy as np
        import dal_native as dn

        backend = os.environ["BACKEND"]
        x = np.random.default_rng(0).standard_normal((4000, 32))
        expected = dn.leverage(x, np.eye(32), backend=backend, threads=2).tobytes()
        stop = threading.Event()

        def work():
            while not stop.is_set():
                dn.leverage(x, np.eye(32), backend=backend, threads=2)
                dn.InformationMatrix(np.eye(32)).add(x[0], 0.1)

        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        status = []
        for _ in range(8):
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                same = dn.leverage(x, np.eye(32), backend=backend, threads=2).tobytes() == expected
                dn.InformationMatrix(np.eye(32)).add(x[0], 0.1)
                os._exit(0 if same else 1)
            status.append(os.waitpid(pid, 0)[1])
        stop.set()
        for worker in workers:
            worker.join()
        print(status)
    """
    assert run_python(script, BACKEND=backend) == f"{[0] * 8}\n"


INTERRUPTED = """
    import os, time
    import numpy as np
    import dal_native as dn

    backend = os.environ["BACKEND"]
    rng = np.random.default_rng(0)
    n, d = (20_000, 32) if backend == "reference" else (150_000, 160)
    pool = dn.Pool(rng.standard_normal((n, d), dtype=np.float32))
    M = np.eye(d)
    before = M.copy()
    small = dn.select_batch(pool, np.zeros(d), [1.0], M, 2, backend=backend)
    print("ready", flush=True)
    try:
        dn.select_batch(pool, np.zeros(d), [1.0], M, 50_000, backend=backend, threads=2)
    except KeyboardInterrupt:
        print(time.monotonic(), flush=True)
    else:
        raise SystemExit("finished before the interrupt")
    assert (M == before).all()
    again = dn.select_batch(pool, np.zeros(d), [1.0], M, 2, backend=backend)
    assert (again.conversation == small.conversation).all() and (again.gain == small.gain).all()
    print("usable", flush=True)
"""


def test_ctrl_c_stops_a_long_selection_within_a_second(backend):
    """SIGINT in the middle of 50,000 picks: KeyboardInterrupt, nothing changed, everything still usable."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED)],
        env={**os.environ, "BACKEND": backend},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(0.7)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    caught, last = output.split()
    assert float(caught) - sent < 1.0
    assert last == "usable"


def test_64_threads_share_a_pool(backend):
    """The same call from 64 Python threads at once gives the same bits in each."""
    p = t.make_problem("power_law", 400, 24, 7, 3, dtype_name="float32")
    pool = p.pool()
    M = dn.InformationMatrix(p.matrix)
    barrier = threading.Barrier(64)
    results, errors = [None] * 64, []

    def work(k):
        try:
            barrier.wait()
            for _ in range(2):
                h = dn.leverage(pool, M, backend=backend, threads=1 + k % 4)
                u = dn.margin(pool, p.reward, backend=backend, threads=1 + k % 3)
                batch = dn.select_batch(
                    pool, p.reward, p.rationality, M, 4, backend=backend, threads=1 + k % 2
                )
            parts = (h, u, batch.conversation, batch.teacher, batch.gain)
            results[k] = b"".join(a.tobytes() for a in parts)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(results)) == 1
    h = dn.leverage(pool, M, backend=backend)
    assert results[0].startswith(h.tobytes())


def test_rows_that_change_during_a_call_do_no_harm():
    """Another thread writes the rows meanwhile: some batch of distinct pairs or an error, never a crash."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 40)).astype(np.float32)
    pool = dn.Pool(x)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            x[rng.integers(0, 3000, 50)] *= np.float32(rng.choice([-1, 0.1, 10, 0]))
            np.clip(x, -1e6, 1e6, out=x)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(200):
            batch = dn.select_batch(pool, np.ones(40), [0.5, 1.0], np.eye(40), 20, backend="cpu", threads=2)
            assert len(set(batch.conversation.tolist())) == 20
            assert (batch.gain >= 0).all()
    finally:
        stop.set()
        thread.join()


def test_the_compiled_backend_releases_the_gil():
    """Python code runs while a leverage is computed."""
    x = np.random.default_rng(0).standard_normal((60_000, 256), dtype=np.float32)
    pool = dn.Pool(x)
    done = threading.Event()

    def work():
        for _ in range(3):
            dn.leverage(pool, np.eye(256), backend="cpu", threads=1)
        done.set()

    thread = threading.Thread(target=work)
    start = time.perf_counter()
    thread.start()
    longest, last = 0.0, start
    while not done.is_set():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        time.sleep(0)
    thread.join()
    total = time.perf_counter() - start
    assert longest < total / 2


def test_torch_keeps_its_threads(run_python):
    pytest.importorskip("torch")
    script = """
        import torch
        before = torch.get_num_threads(), torch.get_num_interop_threads()
        import numpy as np
        import dal_native as dn
        dn.select_batch(torch.eye(5), torch.zeros(5), [1.0], torch.eye(5), 3, threads=4)
        after = torch.get_num_threads(), torch.get_num_interop_threads()
        assert after == before, (before, after)
        print("same")
    """
    assert run_python(script) == "same\n"
