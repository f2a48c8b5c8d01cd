"""Streamed pools: rows that stay in a file give what the same rows in memory give, or one clear error."""

import errno
import gc
import json
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dal_native as dn
from dal_native import _files, _kernels, _validate
from dal_native import testing as t

N, D = 3000, 24
OTHER_READS = ("parquet", "lz4.arrow", "fortran.npy", "swapped.npy")


@pytest.fixture(scope="module")
def problem():
    return t.make_problem("power_law", n=N, d=D, m=5, n_categories=2, seed=3)


def write(path, kind, stored, name="embedding"):
    """Rows as a file of that kind; the pool that opens it has to give them back bit for bit."""
    dtype_name = _validate.storage_name(stored.dtype)
    if kind == "npy":
        np.save(path, stored)
    elif kind == "fortran.npy":
        np.save(path, np.asfortranarray(stored))
    elif kind == "swapped.npy":
        np.save(path, stored.astype(stored.dtype.newbyteorder(">")))
    elif kind.endswith("safetensors"):
        names = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
        entry = {"dtype": names[dtype_name], "shape": stored.shape, "data_offsets": [0, stored.nbytes]}
        text = json.dumps({name: entry}).encode()
        text += b" " * (-len(text) % 8 + (kind == "odd.safetensors"))
        path.write_bytes(struct.pack("<Q", len(text)) + text + stored.tobytes())
    else:
        write_table(path, kind, stored, name)


def write_table(path, kind, stored, name):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    flat = pa.array(stored.ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, stored.shape[1])
    if kind.startswith("lists"):
        ends = np.arange(0, stored.size + 1, stored.shape[1])
        column = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), flat)
    table = pa.table({"id": pa.array([str(k) for k in range(len(stored))]), name: column})
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=700)
        return
    options = pa.ipc.IpcWriteOptions(compression="lz4" if kind.startswith("lz4") else None)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        for batch in table.to_batches(max_chunksize=450):
            writer.write_batch(batch)


def select(pool, p, size=12, **options):
    return dn.select_batch(pool, p.reward, p.rationality, p.matrix, size, **options)


def same(a, b):
    assert a.conversation.tolist() == b.conversation.tolist()
    assert a.teacher.tolist() == b.teacher.tolist()
    assert a.gain.tolist() == b.gain.tolist()
    assert a.d_efficiency == pytest.approx(b.d_efficiency, rel=1e-9)


# --------------------------------------------------------------------------------------------- same results


KINDS = ("npy", "safetensors", "odd.safetensors", "arrow", "lists.arrow", *OTHER_READS)


@pytest.mark.parametrize(
    ("kind", "dtype_name"),
    [
        (kind, dtype_name)
        for kind in KINDS
        for dtype_name in t.DTYPES
        if dtype_name != "bfloat16" or kind.endswith("safetensors")  # no other format has it
    ],
)
def test_picks_are_those_of_the_rows_in_memory(tmp_path, problem, kind, dtype_name):
    stored = t.store(problem.rows(), dtype_name)
    path = tmp_path / f"x.{kind}"
    write(path, kind, stored)
    expected = select(dn.Pool(stored, problem.category), problem)
    for working_memory in (64 * D, 1 << 16, 1 << 24):
        pool = dn.Pool.open(path, problem.category, working_memory=working_memory)
        assert (pool.rows, pool.path, pool.dtype_name) == (None, str(path), dtype_name)
        assert repr(pool) == f"Pool({N} conversations, d={D}, {dtype_name}, streamed)"
        for threads in (1, 2, 7):
            same(select(pool, problem, threads=threads), expected)


@pytest.mark.parametrize("kind", t.KINDS)
@pytest.mark.parametrize(("n", "d", "labels"), [(300, 40, 10), (4000, 17, 4), (2500, 40, 5000)])
def test_every_regime(tmp_path, kind, n, d, labels):
    """Few and many labels, every spectrum: whichever way the first pass goes, and in later rounds."""
    p = t.make_problem(kind, n, d, labels=labels, dtype_name="float32", seed=n)
    stored = p.rows().astype(np.float32)
    np.save(tmp_path / "x.npy", stored)
    pool = dn.Pool(stored, p.category)
    streamed = dn.Pool.open(tmp_path / "x.npy", p.category, working_memory=1 << 17)
    options = {"optimism": 0.3, "repeats": 2, "capacity": np.full(len(p.rationality), 5)}
    same(select(streamed, p, threads=2, **options), select(pool, p, threads=2, **options))
    in_memory, in_file = dn.Selector(pool), dn.Selector(streamed)
    M = p.matrix
    for _ in range(3):
        expected = in_memory.select(p.reward, p.rationality, M, 6)
        same(in_file.select(p.reward, p.rationality, M, 6), expected)
        x = pool.take(expected.conversation)
        M = M + 0.2 * x.T @ x


@pytest.mark.parametrize("route", ["full", "bfloat16", "screened", "warm"])
@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("d", [24, 64])
def test_every_route(tmp_path, take_route, route, dtype_name, d):
    level = dn.capabilities()["simd"]["level"]
    if route == "bfloat16" and level not in ("avx512bf16", "amx"):
        pytest.skip(f"products in bfloat16 need AVX-512 BF16 or AMX; the SIMD level is {level}")
    take_route(route)
    p = t.make_problem("power_law", 1500, d, 5, 2, labels=40, dtype_name=dtype_name, seed=d)
    write(tmp_path / "x.safetensors", "safetensors", p.differences)
    pools = [p.pool(), dn.Pool.open(tmp_path / "x.safetensors", p.category, working_memory=1 << 16)]
    batches = []
    for pool in pools:
        selector = dn.Selector(pool)
        if route == "warm":
            selector.select(p.reward, p.rationality, p.matrix - 0.1 * np.eye(d), 1, backend="cpu")
        batches.append(selector.select(p.reward, p.rationality, p.matrix, 12, backend="cpu", threads=3))
        assert batches[-1].counters["stages"][0] == route
    same(*batches)


@pytest.mark.parametrize("method", ["lazy", "dense"])
def test_every_operation(tmp_path, problem, backend, method):
    stored = problem.rows().astype(np.float16)
    np.save(tmp_path / "x.npy", stored)
    pool = dn.Pool(stored, problem.category)
    streamed = dn.Pool.open(tmp_path / "x.npy", problem.category, working_memory=1 << 18)
    some = np.array([N - 1, 0, 17, 16, 17])
    rng = np.random.default_rng(0)
    w, y = rng.random(N), rng.random(N)
    for operation in (
        lambda pool: dn.margin(pool, problem.reward, backend=backend),
        lambda pool: dn.leverage(pool, problem.matrix, backend=backend),
        lambda pool: dn.leverage(pool, problem.matrix, some, backend=backend),
        lambda pool: dn.information_gain(
            pool, problem.reward, problem.rationality, problem.matrix, some, backend=backend
        ),
        lambda pool: dn.information_gain(
            pool, problem.reward, problem.rationality, problem.matrix, backend=backend
        ),
        lambda pool: dn.information_matrix(pool, w, backend=backend),
        lambda pool: dn.weighted_sum(pool, w, backend=backend),
        lambda pool: dn.hessian_vector(pool, w, problem.reward, backend=backend),
        lambda pool: dn.weighted_sum_by_cell(pool, w, np.arange(N) % 7, 7, backend=backend),
        lambda pool: dn.weighted_sum_by_cell(pool, w[:5], [0, 1, 1, 1, 0], 2, some, backend=backend),
        lambda pool: dn.update_leverage(np.ones(N), pool, problem.rows()[5], 0.1, backend=backend),
        lambda pool: dn.bradley_terry_loss(pool, y, problem.reward, 1.5, backend=backend)[1],
        lambda pool: select(pool, problem, backend=backend, method=method).gain,
        lambda pool: pool.take(some),
        lambda pool: pool.block(N - 3, N + 5),
    ):
        assert operation(streamed) == pytest.approx(operation(pool), rel=1e-12, abs=1e-12)
    blocks = list(streamed.blocks())
    assert len(blocks) > 1
    assert (np.concatenate([x for _, _, x in blocks]) == stored).all()
    assert streamed.block(5, 5).shape == streamed.block(7, 2).shape == (0, D)


def test_rounds_of_a_selector(tmp_path, problem):
    stored = problem.rows().astype(np.float32)
    np.save(tmp_path / "x.npy", stored)
    selectors = [
        dn.Selector(dn.Pool(stored, problem.category)),
        dn.Selector(dn.Pool.open(tmp_path / "x.npy", problem.category, working_memory=1 << 17)),
    ]
    M = dn.InformationMatrix(problem.matrix)
    for _ in range(3):
        batches = [s.select(problem.reward, problem.rationality, M, 10) for s in selectors]
        same(*batches)
        M = dn.InformationMatrix(
            M.matrix + stored[batches[0].conversation].T @ stored[batches[0].conversation]
        )


@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("working_memory", [64 * 16, 1 << 14, 1 << 24])
def test_completions(tmp_path, backend, dtype_name, working_memory):
    rng = np.random.default_rng(1)
    counts = np.array([1, 4, 2, 1, 1, 40, 1, 3, 12, 70, 2, 1])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    stored = t.store(rng.standard_normal((offsets[-1], 16)), dtype_name)
    write(tmp_path / "x.safetensors", "safetensors", stored)
    category = rng.integers(0, 3, len(counts))
    pool = dn.Pool.from_completions(stored, offsets, category)
    streamed = dn.Pool.open(
        tmp_path / "x.safetensors", category, prompt_offsets=offsets, working_memory=working_memory
    )
    assert repr(streamed) == repr(pool)[:-1] + ", streamed)"
    p = t.make_problem("isotropic", 5, 16, n_categories=3, seed=1)
    every = np.arange(len(pool))
    assert (streamed.take(every[::-3]) == pool.take(every[::-3])).all()
    assert (streamed.pairs(every) == pool.pairs(every)).all()
    u = dn.margin(pool, p.reward, backend=backend)
    assert dn.margin(streamed, p.reward, backend=backend) == pytest.approx(u, rel=1e-12, abs=1e-12)
    for threads in (1, 3):
        same(
            select(streamed, p, backend=backend, threads=threads),
            select(pool, p, backend=backend, threads=threads),
        )


def test_one_prompt_larger_than_a_block(tmp_path):
    """Pairs of a prompt of 500 completions, of which the working memory has room for one at a time."""
    stored = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", stored)
    pool = dn.Pool.from_completions(stored, [0, 500])
    streamed = dn.Pool.open(tmp_path / "x.npy", prompt_offsets=[0, 500], working_memory=64 * 8)
    reward = np.ones(8)
    assert (dn.margin(streamed, reward, backend="cpu") == dn.margin(pool, reward, backend="cpu")).all()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 70),
    st.sampled_from(t.DTYPES),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_any_shape(tmp_path_factory, n, d, dtype_name, memory, seed):
    x = np.random.default_rng(seed).standard_normal((n, d))
    stored = t.store(x, dtype_name)
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    write(path, "safetensors", stored)
    streamed = dn.Pool.open(path, working_memory=int(64 * d * (1 + memory * 100)))
    reward, M = np.ones(d), 0.5 * np.eye(d)
    pool = dn.Pool(stored)
    assert (dn.margin(streamed, reward) == dn.margin(pool, reward)).all()
    same(
        dn.select_batch(streamed, reward, [1.0], M, 3),
        dn.select_batch(pool, reward, [1.0], M, 3),
    )


# ---------------------------------------------------------------------------------- what is mapped, arguments


def test_large_files_are_streamed_small_ones_mapped(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.eye(20))
    size = (tmp_path / "x.npy").stat().st_size
    monkeypatch.setattr(_files, "available_memory", lambda: 2 * size)
    assert dn.Pool.open(tmp_path / "x.npy").rows is not None
    monkeypatch.setattr(_files, "available_memory", lambda: 2 * size - 2)
    pool = dn.Pool.open(tmp_path / "x.npy")
    assert pool.rows is None
    assert dn.margin(pool, np.ones(20)).tolist() == [1.0] * 20


def test_parquet_is_measured_by_what_it_unpacks_to(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(80_000)), 16)
    path = tmp_path / "x.parquet"
    pytest.importorskip("pyarrow.parquet").write_table(
        pa.table({"embedding": column}), path, compression="zstd", use_dictionary=False
    )
    assert path.stat().st_size < 80_000
    monkeypatch.setattr(_files, "available_memory", lambda: 2 * 640_000)
    assert dn.Pool.open(path).rows is None
    monkeypatch.setattr(_files, "available_memory", lambda: 3 * 640_000)
    assert dn.Pool.open(path).rows is not None


def test_available_memory():
    assert 1 << 20 < _files.available_memory() < 1 << 50


@pytest.mark.parametrize("kind", KINDS)
def test_working_memory_is_checked(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    write(path, kind, np.ones((10, 24)))
    for wrong, words in [
        (1, "working_memory is 1; expected at least 1536 bytes for rows of 24 features"),
        (1535, "working_memory is 1535; expected at least 1536"),
        (-1, "working_memory is -1"),
        (1.5, "working_memory"),
        (True, "working_memory"),
        ("1", "working_memory"),
    ]:
        with pytest.raises(ValueError, match=words):
            dn.Pool.open(path, working_memory=wrong)
    assert len(dn.Pool.open(path, working_memory=1536)) == 10
    assert len(dn.Pool.open(path, working_memory=2**70)) == 10


def test_an_empty_file(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((0, 3), np.float32))
    pool = dn.Pool.open(tmp_path / "x.npy", working_memory=1 << 20)
    assert len(pool) == 0
    assert len(dn.select_batch(pool, np.zeros(3), [1.0], np.eye(3), 2)) == 0


def test_completions_of_a_mapped_file(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(4))
    pool = dn.Pool.open(tmp_path / "x.npy", [0, 1], prompt_offsets=[0, 3, 4])
    assert (len(pool), pool.category.tolist()) == (3, [0, 1])
    with pytest.raises(ValueError, match="prompt_offsets must start at 0 and end at 4"):
        dn.Pool.open(tmp_path / "x.npy", prompt_offsets=[0, 3], working_memory=1 << 20)


# ---------------------------------------------------------------------------------------------- NaN, infinity


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_nonfinite_row_is_named_when_it_is_read(tmp_path, backend, bad, dtype_name, threads):
    n, d = 5000, 20
    rng = np.random.default_rng(0)
    for row in (0, 2501, n - 1):
        x = rng.standard_normal((n, d)).astype(np.float32)
        x[row, 7] = x[n - 1, 3] = bad
        path = tmp_path / f"x{row}.safetensors"
        write(path, "safetensors", t.store(x, dtype_name))
        pool = dn.Pool.open(path, working_memory=1 << 16)
        words = rf"x{row}\.safetensors: holds NaN or infinity, first in row {row}; expected finite numbers"
        for _ in range(2):
            with pytest.raises(ValueError, match=words):
                dn.margin(pool, np.ones(d), backend=backend, threads=threads)
        with pytest.raises(ValueError, match=words):
            dn.leverage(pool, np.eye(d), [n - 1], backend=backend)
        with pytest.raises(ValueError, match=words):
            pool.take([n - 1])
        with pytest.raises(ValueError, match=words):
            dn.select_batch(pool, np.ones(d), [1.0], np.eye(d), 2, backend=backend, threads=threads)
        if row > 0:
            assert pool.take([0]).tolist() == t.as_float64(t.store(x[:1], dtype_name)).tolist()


# --------------------------------------------------------------------------------------------- hostile files


def npy_header(shape, dtype="<f2", fortran=False):
    from io import BytesIO

    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": fortran, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(2**40, 2**40), (2**62, 8), (-1, 3), (3, -1), (2**31, 2**33), (5, 3), (2**63, 2**63), (1, 2**62)],
)
def test_shapes_beyond_the_file(tmp_path, shape, fortran):
    (tmp_path / "x.npy").write_bytes(npy_header(shape, fortran=fortran) + b"12345678")
    with pytest.raises(
        ValueError, match=r"x\.npy: not a readable \.npy file: shape .* does not fit in 136 bytes"
    ):
        dn.Pool.open(tmp_path / "x.npy", working_memory=1 << 20)


def test_npy_refuses(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(12.0).reshape(4, 3))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.npy: not a readable \.npy file"):
            dn.Pool.open(path, working_memory=1 << 20)
    for array, words in [
        (np.array([[{}]]), "not a readable .npy file: holds Python objects"),
        (np.zeros((2, 3), complex), "x.npy: has dtype complex128; expected float64"),
        (np.zeros((2, 3), "U4"), "x.npy: has dtype <U4"),
        (np.zeros((2, 3), [("a", "f8")]), "x.npy: has dtype"),
        (np.zeros(3), r"has 1 dimensions \(shape \(3,\)\); expected 2"),
        (np.zeros((2, 3, 4)), "has 3 dimensions"),
        (np.zeros((3, 0)), r"has no columns \(shape \(3, 0\)\)"),
    ]:
        np.save(path, array, allow_pickle=True)
        with pytest.raises(ValueError, match=words):
            dn.Pool.open(path, working_memory=1 << 20)
    path.write_text("conversation,teacher\n1,2\n")
    with pytest.raises(ValueError, match=r"x\.npy: not a readable \.npy file"):
        dn.Pool.open(path, working_memory=1 << 20)
    path.write_bytes(b"\x93NUMPY\x03\x00" + whole[8:])
    with pytest.raises(ValueError, match=r"version \(3, 0\) of the format; expected 1.0 or 2.0"):
        dn.Pool.open(path, working_memory=1 << 20)


def test_integers_are_converted(tmp_path):
    x = np.arange(60, dtype=np.int16).reshape(20, 3)
    np.save(tmp_path / "x.npy", x)
    pool = dn.Pool.open(tmp_path / "x.npy", working_memory=1 << 20)
    assert pool.dtype_name == "float64"
    assert (pool.take(np.arange(20)) == x).all()


def test_safetensors_refuses(tmp_path):
    path = tmp_path / "x.safetensors"
    body = np.arange(12.0).tobytes()
    entry = {"dtype": "F64", "shape": [4, 3], "data_offsets": [0, 96]}
    for change, words in [
        ({"dtype": "I64"}, "tensor has dtype 'I64'"),
        ({"shape": [5, 3]}, "truncated or wrong"),
        ({"shape": [-4, -3]}, "shape is -4"),
        ({"shape": [2**40, 2**40]}, "truncated or wrong"),
        ({"data_offsets": [-96, 0]}, "data_offsets is -96"),
        ({"data_offsets": [960, 1056]}, "truncated or wrong"),
        ({"data_offsets": [2**63, 2**63 + 96]}, "truncated or wrong"),
        ({"shape": [4, 0], "data_offsets": [0, 0]}, "has no columns"),
    ]:
        text = json.dumps({"a": {**entry, **change}}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)
        with pytest.raises(ValueError, match=words):
            dn.Pool.open(path, working_memory=1 << 20)
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ValueError, match="the header is longer than the file"):
        dn.Pool.open(path, working_memory=1 << 20)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "lz4.arrow"])
def test_tables_refuse(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / f"x.{kind}"
    path.write_bytes(b"PAR1 is not enough")
    with pytest.raises(ValueError, match=rf"not a readable .{kind.split('.')[-1]} file"):
        dn.Pool.open(path, working_memory=1 << 20)
    write(path, kind, np.ones((2000, 3)))
    whole = path.read_bytes()
    for length in (0, 7, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"x\.{kind}: not a readable"):
            dn.Pool.open(path, working_memory=1 << 20)
    for column, words in [
        (pa.array([[1.0, 2.0], [3.0]]), "nulls or rows of different lengths"),
        (pa.array([[1.0, 2.0], [3.0, 4.0, 5.0], [6.0]]), "nulls or rows of different lengths"),
        (pa.array([[1.0, 2.0], None]), "nulls or rows of different lengths"),
        (pa.array([[1.0, 2.0], [3.0, None]]), "nulls or rows of different lengths"),
        (pa.array([1.0, 2.0]), "found 0 columns of lists of floats"),
        (pa.array([[]], pa.list_(pa.float64())), "no columns"),
        (pa.array([], pa.list_(pa.float64())), "is empty"),
    ]:
        table = pa.table({"embedding": column})
        if kind == "parquet":
            pytest.importorskip("pyarrow.parquet").write_table(table, path)
        else:
            options = pa.ipc.IpcWriteOptions(compression="lz4" if kind == "lz4.arrow" else None)
            sink = pa.OSFile(str(path), "wb")
            with sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
                writer.write_table(table)
        with pytest.raises(ValueError, match=words):
            dn.Pool.open(path, working_memory=1 << 20)


def test_batches_of_different_widths(tmp_path):
    pa = pytest.importorskip("pyarrow")
    schema = pa.schema([("embedding", pa.list_(pa.float64()))])
    for compression in (None, "zstd"):
        path = tmp_path / "x.arrow"
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as writer:
            for d in (2, 3):
                writer.write_batch(pa.record_batch([pa.array([[1.0] * d] * 40, schema[0].type)], schema))
        with pytest.raises(ValueError, match="rows of different lengths"):
            dn.Pool.open(path, working_memory=1 << 20)


@pytest.mark.parametrize("working_memory", [None, 1 << 20])
def test_what_is_not_a_file(tmp_path, working_memory):
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    (tmp_path / "dangling.npy").symlink_to(tmp_path / "nothing")
    for name in ("folder", "pipe", "zero"):
        with pytest.raises(ValueError, match=rf"{name}\.npy: not a regular file"):
            dn.Pool.open(tmp_path / f"{name}.npy", working_memory=working_memory)
    for name in ("dangling", "missing"):
        with pytest.raises(FileNotFoundError, match=rf"{name}\.npy: no such file"):
            dn.Pool.open(tmp_path / f"{name}.npy", working_memory=working_memory)
    with pytest.raises(ValueError, match="/dev/zero: unknown kind of file"):
        dn.Pool.open("/dev/zero", working_memory=working_memory)


@pytest.mark.parametrize("working_memory", [None, 1 << 20])
def test_an_unreadable_file(tmp_path, monkeypatch, working_memory):
    np.save(tmp_path / "x.npy", np.eye(3))
    os.chmod(tmp_path / "x.npy", 0)
    if os.access(tmp_path / "x.npy", os.R_OK):  # root reads everything

        def refuse(*arguments, **options):
            raise PermissionError(13, "Permission denied", "x.npy")

        monkeypatch.setattr("builtins.open", refuse)
        monkeypatch.setattr(_files, "available_memory", lambda: 1 << 30)
    with pytest.raises(ValueError, match=r"x\.npy: not a readable \.npy file: .*Permission denied"):
        dn.Pool.open(tmp_path / "x.npy", working_memory=working_memory)


# ----------------------------------------------------------------------------------------- files that change


def truncate(path):
    os.truncate(path, path.stat().st_size - 1000)


def grow(path):
    with open(path, "ab") as file:
        file.write(b"\0")


def overwrite(path):
    with open(path, "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\0" * 100)
    later = path.stat().st_mtime_ns + 10**9  # the clock of some file systems is coarse
    os.utime(path, ns=(later, later))


def replace(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    state = path.stat()
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    os.replace(other, path)


CHANGES = {
    truncate: r"has \d+ bytes now and had \d+",
    grow: r"has \d+ bytes now and had \d+",
    overwrite: "was written to",
    replace: "was replaced by another file",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["npy", "safetensors", "arrow"])
@pytest.mark.parametrize("working_memory", [None, 1 << 17])
def test_a_file_that_changed_is_refused(tmp_path, problem, backend, change, kind, working_memory):
    path = tmp_path / f"x.{kind}"
    write(path, kind, problem.rows())
    pool = dn.Pool.open(path, problem.category, working_memory=working_memory)
    selector = dn.Selector(pool)
    before = select(pool, problem, backend=backend)
    change(path)
    words = rf"x\.{kind}: {CHANGES[change]} since the pool was opened; expected a file that does not change"
    for call in (
        lambda: select(pool, problem, backend=backend),
        lambda: selector.select(problem.reward, problem.rationality, problem.matrix, 2, backend=backend),
        lambda: dn.margin(pool, problem.reward, backend=backend),
        lambda: dn.leverage(pool, problem.matrix, [3], backend=backend),
        lambda: pool.take([3]),
        lambda: pool.block(0, 2),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    fresh = tmp_path / f"fresh.{kind}"
    write(fresh, kind, problem.rows())
    same(select(dn.Pool.open(fresh, problem.category), problem, backend=backend), before)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("method", ["lazy", "dense"])
def test_a_file_that_changes_during_a_selection(tmp_path, problem, change, threads, method):
    path = tmp_path / "x.npy"
    np.save(path, problem.rows())
    pool = dn.Pool.open(path, problem.category, working_memory=1 << 16)

    def progress(done, total):
        if done == 3:
            change(path)

    with pytest.raises(ValueError, match=rf"x\.npy: {CHANGES[change]} since the pool was opened"):
        select(pool, problem, threads=threads, method=method, progress=progress, backend="cpu")


@pytest.mark.parametrize("threads", [1, 4])
def test_a_file_cut_to_nothing_during_a_selection(tmp_path, problem, backend, threads):
    path = tmp_path / "x.npy"
    np.save(path, problem.rows())
    pool = dn.Pool.open(path, problem.category, working_memory=1 << 16)
    with pytest.raises(ValueError, match=r"x\.npy: has 0 bytes now and had"):
        select(pool, problem, threads=threads, progress=lambda *_: os.truncate(path, 0), backend=backend)


def test_a_file_that_was_removed_is_still_read(tmp_path, problem):
    np.save(tmp_path / "x.npy", problem.rows())
    for working_memory in (None, 1 << 20):
        pool = dn.Pool.open(tmp_path / "x.npy", problem.category, working_memory=working_memory)
        expected = select(pool, problem)
        os.rename(tmp_path / "x.npy", tmp_path / "y.npy")
        same(select(pool, problem), expected)
        os.rename(tmp_path / "y.npy", tmp_path / "x.npy")


def test_the_folder_may_change(tmp_path, monkeypatch, problem):
    """A relative path stays the path that it was at opening."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", problem.rows())
    pools = [dn.Pool.open("x.npy", working_memory=w) for w in (None, 1 << 20)]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.save("x.npy", np.eye(3))
    for pool in pools:
        assert pool.path == str(tmp_path / "x.npy")
        assert (pool.take([7]) == problem.rows()[7]).all()


# ------------------------------------------------------------------------------------------- decoded files


@pytest.mark.parametrize("kind", OTHER_READS)
def test_decoding_goes_to_the_temporary_folder(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    x = np.random.default_rng(0).standard_normal((3000, 20))
    path = tmp_path / f"x.{kind}"
    write(path, kind, x)
    pool = dn.Pool.open(path, working_memory=1 << 20)
    assert list(folder.iterdir()) == []  # it has no name
    targets = [os.readlink(f"/proc/self/fd/{k}") for k in os.listdir("/proc/self/fd") if is_open(k)]
    assert any(target.startswith(str(folder)) for target in targets)
    path.write_bytes(b"")  # what was decoded is ours
    assert (pool.take(np.arange(3000)) == x).all()
    monkeypatch.setattr("tempfile.tempdir", None)


def is_open(descriptor):
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


def test_no_room_to_decode(tmp_path, monkeypatch):
    write(tmp_path / "x.parquet", "parquet", np.ones((500, 20)))
    usage = type("Usage", (), {"free": 79_999})
    monkeypatch.setattr(_files.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        ValueError, match=r"decoding takes 80000 bytes in .*, which has 79999 free; set TMPDIR"
    ):
        dn.Pool.open(tmp_path / "x.parquet", working_memory=1 << 20)
    usage.free = 80_000
    assert len(dn.Pool.open(tmp_path / "x.parquet", working_memory=1 << 20)) == 500


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_room_that_runs_out(tmp_path, monkeypatch):
    write(tmp_path / "x.parquet", "parquet", np.ones((5000, 20)))
    (tmp_path / "name").touch()
    monkeypatch.setattr(
        "tempfile.mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / "name"))
    )
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match=r"x\.parquet: no room to decode it in .*; set TMPDIR"):
        dn.Pool.open(tmp_path / "x.parquet", working_memory=1 << 20)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not (tmp_path / "name").exists()


# ------------------------------------------------------------------------- processes, descriptors, memory


@pytest.mark.parametrize("kind", ["npy", "arrow", "parquet"])
def test_pickle(tmp_path, problem, kind):
    path = tmp_path / f"x.{kind}"
    write(path, kind, problem.rows())
    pool = dn.Pool.open(path, problem.category, working_memory=1 << 20)
    same(select(pickle.loads(pickle.dumps(pool)), problem), select(pool, problem))
    data = pickle.dumps(pool)
    overwrite(path)
    with pytest.raises(ValueError, match="was written to since the pool was opened"):
        pickle.loads(data)


def test_a_mapped_pool_can_be_pickled(tmp_path, problem):
    np.save(tmp_path / "x.npy", problem.rows())
    pool = dn.Pool.open(tmp_path / "x.npy", problem.category)
    same(select(pickle.loads(pickle.dumps(pool)), problem), select(pool, problem))


def test_fork(tmp_path, problem):
    np.save(tmp_path / "x.npy", problem.rows())
    pool = dn.Pool.open(tmp_path / "x.npy", problem.category, working_memory=1 << 18)
    expected = select(pool, problem, threads=2)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            same(select(pool, problem, threads=2), expected)
            code = 0
        finally:
            os._exit(code)
    same(select(pool, problem, threads=2), expected)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("kind", ["npy", "safetensors", "arrow", "parquet"])
def test_descriptors_are_closed_with_the_pool(tmp_path, problem, kind):
    path = tmp_path / f"x.{kind}"
    write(path, kind, problem.rows())
    dn.Pool.open(path, working_memory=1 << 20)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        pool = dn.Pool.open(path, problem.category, working_memory=1 << 20)
        select(pool, problem)
        assert len(os.listdir("/proc/self/fd")) > before
        del pool
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
    path.write_bytes(path.read_bytes()[:-1000] if kind != "npy" else b"")
    for _ in range(3):
        with pytest.raises(ValueError, match=rf"x\.{kind}"):
            dn.Pool.open(path, working_memory=1 << 20)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["npy", "fortran.npy"])
def test_resident_memory_is_bounded(tmp_path, run_python, kind):
    """A pool of 96 MB read with 4 MB of working memory: the process grows by far less than the pool."""
    n, d = 6_000, 4_000
    path = tmp_path / f"x.{kind}"
    row = np.random.default_rng(0).standard_normal(d).astype(np.float32)
    x = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(n, d), fortran_order=kind != "npy"
    )
    x[:] = row * (1 + np.arange(n, dtype=np.float32)[:, None] % 7)
    del x
    script = f"""
        import resource, numpy as np, dal_native as dn
        small = dn.Pool(np.ones((5, {d}), np.float32))
        dn.margin(small, np.ones({d}), threads=2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pool = dn.Pool.open({str(path)!r}, working_memory=4 << 20)
        u = dn.margin(pool, np.ones({d}), threads=2)
        assert u.shape == ({n},)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    assert int(run_python(script)) < 40_000  # kilobytes


def test_threads_share_a_pool(tmp_path, problem):
    """Two Python threads in one pool at once: reads do not disturb each other."""
    from concurrent.futures import ThreadPoolExecutor

    np.save(tmp_path / "x.npy", problem.rows().astype(np.float32))
    pool = dn.Pool.open(tmp_path / "x.npy", problem.category, working_memory=1 << 18)
    u = dn.margin(pool, problem.reward)
    expected = select(pool, problem)
    with ThreadPoolExecutor(4) as workers:
        margins = [workers.submit(dn.margin, pool, problem.reward) for _ in range(8)]
        batches = [workers.submit(select, pool, problem) for _ in range(4)]
        for future in margins:
            assert (future.result() == u).all()
        for future in batches:
            same(future.result(), expected)


# --------------------------------------------------------------------------------------------- the binding


def compiled(path, **changes):
    """A compiled row file over 10 rows of 3 float64 from byte 0 on, with some arguments changed."""
    descriptor = os.open(path, changes.pop("flags", os.O_RDONLY))
    try:
        arguments = {
            "path": str(path),
            "named": True,
            "descriptor": descriptor,
            "scattered": descriptor,
            "state": _files.state_of(descriptor),
            "first_rows": np.array([0]),
            "offsets": np.array([0]),
            "storage": "float64",
            "rows": 10,
            "d": 3,
            "working_memory": 4096,
        }
        return _kernels.RowFile(**{**arguments, **changes})
    finally:
        os.close(descriptor)


def margins(file):
    out = np.empty(10)
    _kernels.margin(
        _kernels.PoolView(file, "float64", np.zeros(10, np.int32), None, None), np.ones(3), out, 2
    )
    return out


def test_the_binding_checks_where_rows_lie(tmp_path):
    x = np.arange(30.0).reshape(10, 3)
    (tmp_path / "x").write_bytes(x.tobytes())
    assert (margins(compiled(tmp_path / "x")) == x.sum(axis=1)).all()
    swapped = compiled(tmp_path / "x", first_rows=np.array([0, 5]), offsets=np.array([120, 0]))
    assert (margins(swapped) == np.roll(x.sum(axis=1), 5)).all()
    for changes, words in [
        ({"offsets": np.array([8])}, "offsets: beyond the file"),
        ({"offsets": np.array([-8])}, "offsets: beyond the file"),
        ({"offsets": np.array([2**62])}, "offsets: beyond the file"),
        ({"first_rows": np.array([1])}, "first_rows: must rise from 0"),
        ({"first_rows": np.array([0, 0]), "offsets": np.array([0, 0])}, "first_rows: must rise from 0"),
        (
            {"first_rows": np.array([0, 10]), "offsets": np.array([0, 0])},
            "first_rows: must rise .* below rows",
        ),
        (
            {"first_rows": np.array([0, 2**62]), "offsets": np.array([0, 0])},
            "first_rows: must rise .* below rows",
        ),
        ({"first_rows": np.array([], np.int64), "offsets": np.array([], np.int64)}, "first_rows: missing"),
        ({"offsets": np.array([0, 0])}, "offsets: wrong length"),
        ({"d": 0}, "rows: out of range"),
        ({"rows": -1}, "rows: out of range"),
        ({"rows": 2**62}, "rows: out of range"),
        ({"rows": 11}, "offsets: beyond the file"),
        ({"storage": "int8"}, "storage: unknown type int8"),
        ({"working_memory": 64 * 3 - 1}, "working_memory: too little"),
    ]:
        with pytest.raises(ValueError, match=words):
            compiled(tmp_path / "x", **changes)
    with pytest.raises(TypeError):
        _kernels.PoolView(None, "float64", np.zeros(10, np.int32), None, None)


def test_what_the_system_cannot_read_is_an_oserror(tmp_path):
    (tmp_path / "x").write_bytes(bytes(240))
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        compiled(tmp_path / "x", descriptor=-1)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, str(tmp_path / "x"))
    file = compiled(tmp_path / "x", flags=os.O_WRONLY)
    for _ in range(2):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            margins(file)
        assert (caught.value.errno, caught.value.filename) == (errno.EBADF, str(tmp_path / "x"))
