"""Which backend serves, with how many threads, at which SIMD level; and BLAS held at one thread."""

import os
import threading

import numpy as np
import pytest
import threadpoolctl

import dal_native as dn
from dal_native import _dispatch


@pytest.fixture(autouse=True)
def untouched():
    """Every test leaves the process's choices as they were."""
    chosen, threads, failures = _dispatch._chosen, _dispatch._threads, dict(_dispatch._failures)
    yield
    _dispatch._chosen, _dispatch._threads = chosen, threads
    _dispatch._failures.clear()
    _dispatch._failures.update(failures)


def test_both_backends_are_there_and_cpu_is_chosen():
    found = dn.capabilities()
    assert found["backends"]["cpu"]["available"], found["backends"]["cpu"]["reason"]
    assert found["backends"]["reference"]["available"]
    assert found["version"] == dn.__version__
    for name in ("numba", "cuda"):
        assert found["backends"][name] == {"available": False, "reason": "this version does not have it"}
    with dn.use_backend("auto"):
        assert dn.capabilities()["auto"] == "cpu"


def test_use_backend_as_a_setter_and_as_a_context_manager():
    dn.use_backend("reference")
    assert dn.capabilities()["auto"] == "reference"
    with dn.use_backend("cpu"):
        assert dn.capabilities()["auto"] == "cpu"
        with pytest.raises(RuntimeError), dn.use_backend("reference"):
            raise RuntimeError
        assert dn.capabilities()["auto"] == "cpu"
    assert dn.capabilities()["auto"] == "reference"
    with pytest.raises(dn.BackendConfigurationError, match="backend is 'gpu'"):
        dn.use_backend("gpu")
    assert dn.capabilities()["auto"] == "reference"


def test_environment_names_the_backend(monkeypatch):
    _dispatch._chosen = None
    monkeypatch.setenv("DAL_NATIVE_BACKEND", "reference")
    assert dn.capabilities()["auto"] == "reference"
    monkeypatch.setenv("DAL_NATIVE_BACKEND", "fast")
    with pytest.raises(
        dn.BackendConfigurationError, match="environment variable DAL_NATIVE_BACKEND is 'fast'"
    ):
        dn.margin(np.eye(2), np.ones(2))
    monkeypatch.setenv("DAL_NATIVE_BACKEND", "")
    assert dn.capabilities()["auto"] == "cpu"


class Partial:
    """A backend with one operation only."""

    @staticmethod
    def margin(pool, reward, out, threads):
        out[:] = 42.0


def test_auto_passes_over_what_a_backend_lacks(monkeypatch):
    reference = _dispatch.load("reference")
    monkeypatch.setattr(_dispatch, "load", {"cpu": Partial, "reference": reference}.__getitem__)
    with dn.use_backend("auto"):
        assert dn.margin(np.eye(2), np.ones(2)).tolist() == [42.0, 42.0]
        assert dn.leverage(np.eye(2), np.eye(2)).tolist() == [1.0, 1.0]
        with pytest.raises(dn.BackendConfigurationError, match="backend 'cpu' has no operation 'leverage'"):
            dn.leverage(np.eye(2), np.eye(2), backend="cpu")


def test_a_backend_that_cannot_be_imported_gives_its_reason():
    _dispatch._failures["cpu"] = "no module named 'dal_native._kernels'"
    with dn.use_backend("auto"):
        assert dn.margin(np.eye(2), np.ones(2)).tolist() == [1.0, 1.0]
        assert dn.capabilities()["auto"] == "reference"
        assert "no module named" in dn.capabilities()["backends"]["cpu"]["reason"]
    for call in (lambda: dn.use_backend("cpu"), lambda: dn.margin(np.eye(2), np.ones(2), backend="cpu")):
        with pytest.raises(
            dn.BackendConfigurationError, match="backend 'cpu' is not available: no module named"
        ):
            call()


def test_an_operation_without_any_backend_says_so():
    with (
        dn.use_backend("auto"),
        pytest.raises(dn.BackendConfigurationError, match="no backend has the operation 'x'"),
    ):
        _dispatch.find("x")


def test_a_wrong_simd_level_is_an_error_not_a_fallback(run_python):
    script = """
        import dal_native as dn
        for backend in ("auto", "cpu"):
            try:
                dn.margin([[1.0]], [1.0], backend=backend)
            except dn.BackendConfigurationError as error:
                assert "DAL_NATIVE_SIMD" in str(error) and "sse9" in str(error), error
            else:
                raise AssertionError("a wrong level was passed over")
        reason = dn.capabilities()["backends"]["cpu"]
        assert not reason["available"] and "sse9" in reason["reason"], reason
        with dn.use_backend("reference"):
            assert dn.margin([[1.0]], [1.0]).tolist() == [1.0]
        print("done")
    """
    assert run_python(script, DAL_NATIVE_SIMD="sse9") == "done\n"


def test_every_simd_level_picks_the_same(run_python):
    """At every level that this processor has: same picks, same bits of the gains."""
    script = """
        import hashlib
        import dal_native as dn
        from dal_native import testing as t

        digest = hashlib.sha256()
        for dtype_name in t.DTYPES:
            for d in (3, 8, 17, 33):
                p = t.make_problem("power_law", 500, d, dtype_name=dtype_name, seed=d)
                batch = dn.select_batch(p.pool(), p.reward, p.rationality, p.matrix, 20, backend="cpu")
                t.check_batch(batch, p, 20)
                for a in (batch.conversation, batch.teacher, batch.gain):
                    digest.update(a.tobytes())
        print(dn.capabilities()["simd"]["level"], digest.hexdigest())
    """
    levels = dn.capabilities()["simd"]["available"]
    assert "generic" in levels
    outputs = [run_python(script, DAL_NATIVE_SIMD=level).split() for level in levels]
    assert [level for level, _ in outputs] == list(levels)
    assert len({digest for _, digest in outputs}) == 1


def test_threads_in_order_of_precedence(monkeypatch):
    for variable in ("DAL_NATIVE_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    dn.set_threads(None)
    assert _dispatch.threads() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert _dispatch.threads() == 3
    monkeypatch.setenv("DAL_NATIVE_NUM_THREADS", "4")
    assert _dispatch.threads() == 4
    dn.set_threads(5)
    assert _dispatch.threads() == 5
    assert _dispatch.threads(6) == 6
    dn.set_threads(None)
    for wrong in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("DAL_NATIVE_NUM_THREADS", wrong)
        with pytest.raises(dn.BackendConfigurationError, match=f"DAL_NATIVE_NUM_THREADS is '{wrong}'"):
            _dispatch.threads()


def blas_threads():
    return [k["num_threads"] for k in threadpoolctl.threadpool_info() if k["user_api"] == "blas"]


def test_blas_is_held_at_one_thread_and_restored():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with dn.single_threaded_blas():
            assert set(blas_threads()) == {1}
            with dn.single_threaded_blas():
                assert set(blas_threads()) == {1}
            assert set(blas_threads()) == {1}
        assert blas_threads() == before
        with pytest.raises(KeyError), dn.single_threaded_blas():
            raise KeyError
        assert blas_threads() == before


def test_the_last_of_many_threads_restores_blas():
    """While any thread is inside, BLAS stays at one thread; afterwards it is what it was."""
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        seen, barrier = [], threading.Barrier(8)

        def work():
            barrier.wait()
            for _ in range(50):
                with dn.single_threaded_blas():
                    seen.append(set(blas_threads()) == {1})

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 400
        assert all(seen)
        assert blas_threads() == before


def test_results_have_the_same_bits_for_any_setting_of_blas(backend):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 96))
    results = []
    for threads in (1, 2, 4):
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            M = dn.information_matrix(x, 0.1, backend=backend)
            information = dn.InformationMatrix(M)
            information.add(x[0], 0.2)
            h = dn.leverage(x, information, backend=backend)
            batch = dn.select_batch(x, x[0], [1.0], information, 5, backend=backend)
            parts = (M, information.factor, information.inverse, h, batch.gain)
            results.append(b"".join(a.tobytes() for a in parts))
    assert len(set(results)) == 1
