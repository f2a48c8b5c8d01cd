"""Pools: what is accepted, what is converted, what is refused; pairs of completions; files."""

import json
import mmap
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dal_native as dn
from dal_native import testing as t

X = np.arange(12.0).reshape(4, 3) - 5.0


# ------------------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize("dtype_name", t.DTYPES)
def test_rows_are_kept_as_stored(dtype_name):
    stored = t.store(X / 3, dtype_name)
    pool = dn.Pool(stored)
    assert (pool.dtype_name, pool.d, len(pool)) == (dtype_name, 3, 4)
    assert pool.rows.tobytes() == stored.tobytes()
    assert np.shares_memory(pool.rows, stored)
    assert (pool.take([2, 0]) == t.as_float64(stored)[[2, 0]]).all()
    assert (pool.block(1, 3) == t.as_float64(stored)[1:3]).all()


def test_every_float16_and_bfloat16_decodes_exactly(backend):
    bits = np.arange(1 << 16).astype(np.uint16)
    for stored in (bits.view(np.float16), bits.view(ml_dtypes.bfloat16)):
        with np.errstate(invalid="ignore"):  # signalling NaN
            numbers = stored.astype(np.float64)
        finite = np.isfinite(numbers)
        pool = dn.Pool(stored[finite][:, None])
        assert (pool.take(np.arange(len(pool))).ravel() == numbers[finite]).all()
        assert (dn.margin(pool, [1.0], backend=backend) == numbers[finite]).all()
        with dn.use_backend(backend), pytest.raises(ValueError, match=f"first in row {np.argmin(finite)}"):
            dn.Pool(stored[:, None])


SHAPES = {
    "list": lambda x: x.tolist(),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "strided rows": lambda x: np.repeat(x, 2, axis=0)[::2],
    "strided columns": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "Fortran": np.asfortranarray,
    "misaligned": lambda x: np.frombuffer(b"." + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "integers": lambda x: x.astype(np.int16),
    "dlpack": lambda x: OnlyDlpack(x),
}


class OnlyDlpack:
    """A producer that speaks DLPack and nothing else."""

    def __init__(self, x):
        self.x = x

    def __dlpack__(self, **arguments):
        return self.x.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_array_layouts(backend, shape, dtype):
    x = X.astype(dtype)
    pool = dn.Pool(SHAPES[shape](x))
    assert (pool.take([0, 1, 2, 3]) == X).all()
    assert pool.rows.flags.c_contiguous
    assert pool.rows.flags.aligned
    assert pool.rows.dtype.isnative
    assert (dn.margin(pool, [1.0, 0.0, 0.0], backend=backend) == X[:, 0]).all()


def test_broadcast_rows_of_zero_stride(backend):
    pool = dn.Pool(np.broadcast_to(X[0], (5, 3)))
    assert (dn.margin(pool, [0.0, 1.0, 0.0], backend=backend) == X[0, 1]).all()


def test_a_pool_does_not_copy_a_memory_map(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(dn.Pool(mapped).rows, mapped)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            X.astype(complex),
            "differences has dtype complex128; expected float64, float32, float16 or bfloat16",
        ),
        (X > 0, "differences has dtype bool"),
        (X.astype(object), "differences has dtype object"),
        (X.astype(str), "differences has dtype <U"),
        (X.astype(np.longdouble), "differences has dtype float128"),
        (X.astype("datetime64[s]"), "differences has dtype datetime64"),
        (np.zeros((2, 2), [("a", "f8"), ("b", "f8")]), "differences has dtype"),
        (X[0], r"differences has 1 dimensions \(shape \(3,\)\); expected 2"),
        (X[None], "differences has 3 dimensions"),
        (np.float64(3), "differences has 0 dimensions"),
        (np.zeros((3, 0)), r"differences has no columns \(shape \(3, 0\)\)"),
        ([[1.0, 2.0], [3.0]], "differences cannot be read as an array"),
        (np.ma.masked_array(X, X > 3), "differences is a masked array"),
        (None, "differences has"),
        ("pool.npy", "differences has"),
    ],
)
def test_refused_differences(values, words):
    with pytest.raises(ValueError, match=words):
        dn.Pool(values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 65, 70000])
@pytest.mark.parametrize("dtype_name", t.DTYPES)
def test_first_nonfinite_row_is_named(backend, bad, n, dtype_name):
    d = 17
    with dn.use_backend(backend):
        for row in {0, n // 2, n - 1}:
            for column in (0, 8, d - 1):
                x = np.zeros((n, d), np.float32)
                x[row, column] = bad
                x[n - 1, d - 1] = bad
                with pytest.raises(
                    ValueError, match=f"differences holds NaN or infinity, first in row {row};"
                ):
                    dn.Pool(t.store(x, dtype_name))


def test_largest_and_smallest_numbers_are_finite(backend):
    with dn.use_backend(backend):
        for dtype in (np.float64, np.float32, np.float16):
            info = np.finfo(dtype)
            assert len(dn.Pool(np.array([[info.max, -info.max, info.smallest_subnormal, -0.0]], dtype))) == 1


def test_category():
    assert dn.Pool(X).category.tolist() == [0, 0, 0, 0]
    pool = dn.Pool(X, category=np.array([0, 3, 1, 0], np.uint8))
    assert pool.category.dtype == np.int32
    assert pool.category_of([1, 2]).tolist() == [3, 1]
    assert pool.n_categories == 4
    for values, words in [
        ([0, 1], "category has length 2; expected 4, one for each conversation"),
        ([0, 1, 2, -1], "category holds -1"),
        ([0, 1, 2, 2**40], f"category holds {2**40}"),
        ([0.0, 1.0, 2.0, 3.0], "category has dtype float64; expected integers"),
        ([True] * 4, "category has dtype bool"),
        ([[0, 1, 2, 3]], "category has 2 dimensions"),
    ]:
        with pytest.raises(ValueError, match=words):
            dn.Pool(X, category=values)


def test_indices_are_checked():
    pool = dn.Pool(X)
    for values, words in [
        ([4], "conversations holds 4; expected conversations between 0 and 3"),
        ([-1], "holds -1"),
        ([0.0], "dtype float64"),
        ([True], "dtype bool"),
    ]:
        with pytest.raises(ValueError, match=words):
            pool.take(values)
    assert pool.take([]).shape == (0, 3)


# ----------------------------------------------------------------------------------------------- torch


def test_torch_tensors_come_and_go_without_a_copy(backend):
    torch = pytest.importorskip("torch")
    for dtype, name in [
        (torch.float64, "float64"),
        (torch.float32, "float32"),
        (torch.float16, "float16"),
        (torch.bfloat16, "bfloat16"),
    ]:
        x = torch.tensor(X, dtype=dtype)
        pool = dn.Pool(x)
        assert pool.dtype_name == name
        assert pool.rows.ctypes.data == x.data_ptr()
        for result in (
            dn.margin(pool, torch.ones(3), backend=backend),
            dn.leverage(x, torch.eye(3), backend=backend),
            dn.information_gain(pool, torch.ones(3), [1.0], np.eye(3), backend=backend),
        ):
            assert isinstance(result, torch.Tensor)
            assert result.dtype == torch.float64
        assert dn.margin(pool, torch.ones(3), backend=backend).tolist() == X.sum(axis=1).tolist()
    assert isinstance(dn.margin(X, torch.ones(3)), np.ndarray)


def test_torch_tensors_that_cannot_be_used_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="differences lives on device meta; expected a tensor on the CPU"):
        dn.Pool(torch.zeros(2, 2, device="meta"))
    with pytest.raises(ValueError, match="differences has dtype complex64"):
        dn.Pool(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="differences has dtype bool"):
        dn.Pool(torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="differences cannot be read as an array"):
        dn.Pool(torch.eye(2).to_sparse())
    assert len(dn.Pool(torch.zeros(2, 2, requires_grad=True))) == 2
    assert (dn.Pool(torch.tensor(X).T).take([0]) == X[:, 0]).all()


# ------------------------------------------------------------------------------------------ completions


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_pairs_follow_the_enumeration(counts, seed):
    offsets = np.concatenate([[0], np.cumsum(counts)])
    phi = np.random.default_rng(seed).standard_normal((offsets[-1], 2))
    pool = dn.Pool.from_completions(phi, offsets, category=np.arange(len(counts)))
    pairs = [
        (p, start + a, start + b)
        for p, (start, k) in enumerate(zip(offsets, counts, strict=False))
        for a in range(k)
        for b in range(a + 1, k)
    ]
    assert len(pool) == len(pairs)
    every = np.arange(len(pool))
    assert pool.pairs(every).tolist() == [[a, b] for _, a, b in pairs]
    assert pool.category_of(every).tolist() == [p for p, _, _ in pairs]
    expected = np.array([phi[b] - phi[a] for _, a, b in pairs]).reshape(len(pairs), 2)
    assert (pool.take(every) == expected).all()
    assert (pool.block(0, len(pool)) == expected).all()


@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("d", [1, 7, 16, 33])
def test_completions_equal_their_differences(backend, dtype_name, d):
    """A pool of completions and the pool of its differences, written out, give the same of everything."""
    rng = np.random.default_rng(d)
    counts = np.array([1, 4, 2, 1, 7, 1, 3, 12, 1])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    stored = t.store(rng.standard_normal((offsets[-1], d)), dtype_name)
    category = rng.integers(0, 3, len(counts))
    pool = dn.Pool.from_completions(stored, offsets, category)
    every = np.arange(len(pool))
    explicit = dn.Pool(pool.take(every), pool.category_of(every))
    p = t.make_problem("isotropic", 5, d, seed=d)
    x = pool.take(every)
    condition = np.linalg.cond(p.matrix)
    size = np.abs(x) @ np.abs(p.reward) + np.abs(t.as_float64(stored)).max() * np.abs(p.reward).sum()
    u = dn.margin(pool, p.reward, backend=backend)
    assert (np.abs(u - dn.margin(explicit, p.reward, backend=backend)) <= t.tolerance(d) * size).all()
    h = dn.leverage(pool, p.matrix, backend=backend)
    assert h == pytest.approx(dn.leverage(explicit, p.matrix, backend=backend), rel=t.tolerance(d, condition))
    some = np.array([3, 0, len(pool) - 1])
    assert dn.leverage(pool, p.matrix, some, backend=backend) == pytest.approx(h[some], rel=1e-12)
    g = dn.information_gain(pool, p.reward, p.rationality, p.matrix, backend=backend)
    expected = dn.information_gain(explicit, p.reward, p.rationality, p.matrix, backend=backend)
    assert g == pytest.approx(expected, rel=1e-9)
    w = rng.random(len(pool))
    M = dn.information_matrix(pool, w, backend=backend)
    assert pytest.approx(dn.information_matrix(explicit, w, backend=backend), rel=1e-11, abs=1e-11) == M
    cell, row = rng.integers(0, 3, len(pool)), rng.integers(0, len(pool), len(pool))
    for operation in (
        lambda of: dn.weighted_sum(of, w, backend=backend),
        lambda of: dn.hessian_vector(of, w, p.reward, backend=backend),
        lambda of: dn.weighted_sum_by_cell(of, w, cell, 3, backend=backend),
        lambda of: dn.weighted_sum_by_cell(of, w, cell, 3, row, backend=backend),
    ):
        assert operation(pool) == pytest.approx(operation(explicit), rel=1e-9, abs=1e-10)
    y = rng.random(len(pool))
    loss, gradient, _ = dn.bradley_terry_loss(pool, y, p.reward, 1.5, backend=backend)
    expected_loss, expected_gradient, _ = dn.bradley_terry_loss(explicit, y, p.reward, 1.5, backend=backend)
    assert loss == pytest.approx(expected_loss, rel=1e-11)
    assert gradient == pytest.approx(expected_gradient, rel=1e-9, abs=1e-10)
    arguments = (p.reward, p.rationality, p.matrix, 12)
    batch = dn.select_batch(pool, *arguments, backend=backend)
    problem = t.Problem(x, pool.category_of(every), p.rationality, p.reward, p.matrix)
    t.check_batch(batch, problem, 12)
    assert (dn.select_batch(explicit, *arguments, backend=backend).conversation == batch.conversation).all()


@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("d", [1, 7, 16, 33])
@pytest.mark.parametrize(("completions", "k"), [(2, 1), (2, 9), (40, 65), (300, 20), (40, 600)])
def test_listed_pairs_are_their_differences(backend, dtype_name, d, completions, k):
    """Every operation, beside a pool of the differences themselves; few pairs and many to a completion."""
    rng = np.random.default_rng(k + d)
    p = t.make_problem("power_law", completions, d, dtype_name=dtype_name, seed=k)
    a = rng.integers(0, completions, k)
    b = (a + rng.integers(1, completions, k)) % completions
    category = rng.integers(0, 3, k)
    pool = dn.Pool.from_pairs(p.differences, np.stack([a, b], axis=1), category)
    x = p.rows()[b] - p.rows()[a]
    explicit = dn.Pool(x, category)
    assert len(pool) == k and pool.d == d and pool.dtype_name == dtype_name
    assert (pool.take(np.arange(k)) == x).all() and (pool.block(0, k) == x).all()
    assert pool.pairs([k - 1]).tolist() == [[a[-1], b[-1]]]
    assert (pool.category_of(np.arange(k)) == category).all()
    w, some, size = rng.standard_normal(k), rng.integers(0, k, 2 * k), 1 + np.abs(p.rows()).max()
    for operation in (
        lambda of, **o: dn.margin(of, p.reward, **o),
        lambda of, **o: dn.leverage(of, p.matrix, **o),
        lambda of, **o: dn.leverage(of, p.matrix, some, **o),
        lambda of, **o: dn.information_gain(of, p.reward, p.rationality, p.matrix, **o),
        lambda of, **o: dn.information_matrix(of, w, signed=True, **o),
        lambda of, **o: dn.weighted_sum(of, w, **o),
        lambda of, **o: dn.hessian_vector(of, w, p.reward, **o),
        lambda of, **o: dn.weighted_sum_by_cell(of, w, category, 3, **o),
        lambda of, **o: dn.weighted_sum_by_cell(of, w[some], category[some], 3, some, **o),
        lambda of, **o: dn.update_leverage(np.abs(w), of, p.reward, 0.01, **o),
        lambda of, **o: dn.bradley_terry_loss(of, np.abs(np.sin(w)), p.reward, 1.5, **o)[1],
    ):
        got = operation(pool, backend=backend)
        assert got == pytest.approx(operation(explicit, backend=backend), rel=1e-10, abs=1e-10 * k * size**2)
        more = [operation(pool, backend=backend, threads=n).tobytes() for n in (1, 2, 7)]
        assert more == [got.tobytes()] * 3


def test_listed_pairs_of_a_streamed_file(backend, tmp_path):
    p = t.make_problem("isotropic", 50, 9, dtype_name="float32")
    np.save(tmp_path / "x.npy", p.differences)
    streamed = dn.Pool.open(tmp_path / "x.npy", working_memory=1 << 12)
    pairs = np.stack([np.arange(49), np.arange(1, 50)], axis=1)[::-1]
    pool, held = dn.Pool.from_pairs(streamed.stored(), pairs), dn.Pool.from_pairs(p.differences, pairs)
    for operation in (
        lambda of: dn.margin(of, p.reward, backend=backend),
        lambda of: dn.leverage(of, p.matrix, backend=backend),
        lambda of: dn.weighted_sum(of, np.cos(np.arange(49)), backend=backend),
    ):
        assert operation(pool) == pytest.approx(operation(held), rel=1e-12, abs=1e-12)


def test_listed_pairs_that_are_refused(backend):
    for pairs, words in (
        ([[0, 4]], "pairs holds 4; expected completions between 0 and 3"),
        ([[0, 1], [2, 2]], r"pairs\[1\] is completion 2 twice; expected two completions"),
        ([[0, 1, 2]], r"pairs has shape \(1, 3\); expected two columns"),
        ([0, 1], "pairs has 1 dimensions"),
    ):
        with pytest.raises(ValueError, match=words):
            dn.Pool.from_pairs(X, pairs)
    pool = dn.Pool.from_pairs(X, [[1, 0], [0, 2]])
    assert repr(pool) == "Pool(2 conversations of listed pairs, d=3, float64)"
    for select in (dn.select_batch, lambda pool, *rest, **o: dn.Selector(pool).select(*rest, **o)):
        with pytest.raises(ValueError, match="pool is of listed pairs; expected differences, or completions"):
            select(pool, np.ones(3), [1.0], np.eye(3), 1, backend=backend)


def test_pool_of_prompts_with_one_completion_is_empty(backend):
    pool = dn.Pool.from_completions(X, [0, 1, 2, 3, 4])
    assert len(pool) == 0
    assert dn.leverage(pool, np.eye(3), backend=backend).shape == (0,)
    assert dn.margin(pool, np.ones(3), backend=backend).shape == (0,)
    batch = dn.select_batch(pool, np.zeros(3), [1.0], np.eye(3), 2, backend=backend)
    assert len(batch) == 0
    assert batch.counters["exhausted"]
    assert batch.d_efficiency == 1.0


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([0, 2, 2, 4], "prompt 1 has 0 completions; expected at least one"),
        ([0, 3, 2, 4], "prompt 1 has -1 completions"),
        ([0, 2], "prompt_offsets must start at 0 and end at 4, the number of completions"),
        ([1, 4], "must start at 0"),
        ([], "must start at 0"),
        ([0.0, 4.0], "prompt_offsets has dtype float64; expected integers"),
        ([[0, 4]], "prompt_offsets has 2 dimensions"),
    ],
)
def test_refused_offsets(offsets, words):
    with pytest.raises(ValueError, match=words):
        dn.Pool.from_completions(X, offsets)


def test_refused_completions():
    with pytest.raises(ValueError, match="completions holds NaN or infinity, first in row 2"):
        dn.Pool.from_completions(np.where(np.arange(4)[:, None] == 2, np.nan, X), [0, 4])
    with pytest.raises(ValueError, match="category has length 4; expected 2, one for each prompt"):
        dn.Pool.from_completions(X, [0, 2, 4], category=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="holds differences; pairs are known for pools of completions only"):
        dn.Pool(X).pairs([0])


def test_more_conversations_than_32_bits():
    """70,000 completions of one prompt are 2.4e9 conversations; the last is the pair of the last two rows."""
    k = 70_000
    pool = dn.Pool.from_completions(np.broadcast_to(np.float16(1), (k, 1)), [0, k])
    assert len(pool) == k * (k - 1) // 2
    assert pool.pairs([len(pool) - 1, 0, k - 2, k - 1]).tolist() == [
        [k - 2, k - 1],
        [0, 1],
        [0, k - 1],
        [1, 2],
    ]


# ------------------------------------------------------------------------------------------------ files


def write_safetensors(path, tensors, header=None, tail=b""):
    """A .safetensors file by its definition: name -> (dtype, shape, bytes)."""
    entries, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(entries).encode() if header is None else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + body + tail)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet", "arrow"])
def test_open(tmp_path, dtype, kind):
    x = X.astype(dtype)
    path = tmp_path / f"pool.{kind}"
    if kind == "npy":
        np.save(path, x)
    elif kind == "safetensors":
        from safetensors.numpy import save_file

        save_file({"embedding": x, "other": x[:, :1].copy()}, path)
    else:
        write_table(path, x, "embedding")
    pool = dn.Pool.open(path, category=[0, 1, 0, 1])
    assert pool.dtype_name == np.dtype(dtype).name
    assert (pool.take(range(4)) == X).all()
    assert pool.category.tolist() == [0, 1, 0, 1]
    if kind in ("npy", "safetensors"):
        assert is_mapped(pool.rows)


def is_mapped(a):
    while isinstance(a, np.ndarray):
        a = a.base
    return isinstance(a, mmap.mmap)


def write_table(path, x, name, fixed=True):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    flat = pa.array(x.ravel())
    if fixed:
        column = pa.FixedSizeListArray.from_arrays(flat, x.shape[1])
    else:
        column = pa.ListArray.from_arrays(pa.array(np.arange(0, x.size + 1, x.shape[1]), pa.int32()), flat)
    table = pa.table({"id": pa.array([str(k) for k in range(len(x))]), name: column})
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=2)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            for batch in table.to_batches(max_chunksize=3):
                writer.write_batch(batch)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_open_table_with_variable_lists_and_any_name(tmp_path, kind):
    write_table(tmp_path / f"x.{kind}", X, "vector", fixed=False)
    assert (dn.Pool.open(tmp_path / f"x.{kind}").take(range(4)) == X).all()


def test_open_bfloat16_safetensors(tmp_path):
    stored = t.to_bfloat16(X / 3)
    write_safetensors(tmp_path / "x.safetensors", {"a": ("BF16", [4, 3], stored.tobytes())})
    pool = dn.Pool.open(str(tmp_path / "x.safetensors"))
    assert pool.dtype_name == "bfloat16"
    assert (pool.take(range(4)) == t.as_float64(stored)).all()
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"differences": torch.tensor(X, dtype=torch.bfloat16)}, tmp_path / "y.safetensors")
    assert (dn.Pool.open(tmp_path / "y.safetensors").take(range(4)) == X).all()


def test_open_fortran_and_big_endian_npy(tmp_path):
    np.save(tmp_path / "f.npy", np.asfortranarray(X))
    np.save(tmp_path / "b.npy", X.astype(">f4"))
    for name in ("f.npy", "b.npy"):
        assert (dn.Pool.open(tmp_path / name).take(range(4)) == X).all()


def test_open_empty(tmp_path):
    np.save(tmp_path / "e.npy", np.zeros((0, 3)))
    assert len(dn.Pool.open(tmp_path / "e.npy")) == 0
    write_safetensors(tmp_path / "e.safetensors", {"a": ("F32", [0, 3], b"")})
    assert len(dn.Pool.open(tmp_path / "e.safetensors")) == 0


def test_open_npy_refuses(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.npy: not a readable \.npy file"):
            dn.Pool.open(path)
    np.save(path, np.array([[{}]]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"x\.npy: not a readable \.npy file: .*[Oo]bject"):
        dn.Pool.open(path)
    path.write_text("conversation,teacher\n1,2\n")
    with pytest.raises(ValueError, match=r"x\.npy: not a readable \.npy file"):
        dn.Pool.open(path)


@pytest.mark.parametrize("shape", [(2**40, 2**40), (2**62, 8), (-1, 3), (2**31, 2**33), (5, 3)])
def test_open_npy_refuses_shapes_beyond_the_file(tmp_path, shape):
    with open(tmp_path / "x.npy", "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"12345678")
    with pytest.raises(ValueError, match=r"x\.npy: not a readable \.npy file"):
        dn.Pool.open(tmp_path / "x.npy")


@pytest.mark.slow
def test_more_numbers_than_32_bits(tmp_path):
    """A sparse file of 2^31 + 3,072 float16: the last row is found where it is."""
    n, d = 2**21 + 3, 1024
    with open(tmp_path / "x.npy", "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (n, d)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 2 * n * d)
        file.seek(-2 * d, 2)
        file.write(np.full(d, 0.5, np.float16).tobytes())
    pool = dn.Pool.open(tmp_path / "x.npy")
    u = dn.margin(pool, np.ones(d), backend="cpu")
    assert u[-1] == d / 2
    assert np.count_nonzero(u) == 1
    assert dn.leverage(pool, np.eye(d), [0, n - 1], backend="cpu").tolist() == [0.0, d / 4]


def test_open_safetensors_refuses(tmp_path):
    path = tmp_path / "x.safetensors"
    good = {"a": ("F64", [4, 3], X.tobytes())}
    write_safetensors(path, good)
    whole = path.read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            dn.Pool.open(path)
    entry = {"dtype": "F64", "shape": [4, 3], "data_offsets": [0, 96]}
    for change, words in [
        ({"dtype": "I64"}, "tensor has dtype 'I64'"),
        ({"dtype": ["F64"]}, "not a readable"),
        ({"shape": [5, 3]}, "truncated or wrong"),
        ({"shape": [-4, -3]}, "shape is -4"),
        ({"shape": [2**40, 2**40]}, "truncated or wrong"),
        ({"data_offsets": [-96, 0]}, "data_offsets is -96"),
        ({"data_offsets": [960, 1056]}, "truncated or wrong"),
        ({"data_offsets": [0]}, "not a readable"),
        ({"data_offsets": "ab"}, "not a readable"),
    ]:
        write_safetensors(path, good, header=json.dumps({"a": {**entry, **change}}).encode())
        with pytest.raises(ValueError, match=words):
            dn.Pool.open(path)
    text = json.dumps({"a": entry}).encode()
    for header, words in [
        (b"[1, 2]", "the header is not a JSON object"),
        (b"{", "not a readable"),
        (b'{"a": {}, "a": {}}', "a key appears twice"),
        (b"{}", "found 0 two-dimensional tensors"),
        (text[:-1] + b', "b": ' + text[6:], r"found 2 two-dimensional tensors \['a', 'b'\]"),
        (b"[" * 200_000, "not a readable"),
        (b"\xff\xfe{}", "not a readable"),
    ]:
        write_safetensors(path, good, header=header)
        with pytest.raises(ValueError, match=words):
            dn.Pool.open(path)
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ValueError, match="the header is longer than the file"):
        dn.Pool.open(path)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_open_tables_refuses(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / f"x.{kind}"
    path.write_bytes(b"PAR1 is not enough")
    with pytest.raises(ValueError, match=f"not a readable .{kind} file"):
        dn.Pool.open(path)

    def write(column):
        table = pa.table({"embedding": column})
        if kind == "parquet":
            pytest.importorskip("pyarrow.parquet").write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

    for column, words in [
        (pa.array([[1.0, 2.0], [3.0]]), "nulls or rows of different lengths"),
        (pa.array([[1.0, 2.0], [3.0, 4.0, 5.0], [6.0]]), "nulls or rows of different lengths"),
        (pa.array([[1.0, 2.0], None]), "nulls or rows of different lengths"),
        (pa.array([[1.0, 2.0], [3.0, None]]), "nulls or rows of different lengths"),
        (pa.array([1.0, 2.0]), "found 0 columns of lists of floats"),
        (pa.array(["a", "b"]), "found 0 columns of lists of floats"),
        (pa.array([[]], pa.list_(pa.float64())), "no columns"),
        (pa.array([], pa.list_(pa.float64())), "is empty"),
        (pa.array([[1.0, float("nan")]]), "holds NaN or infinity, first in row 0"),
    ]:
        write(column)
        with pytest.raises(ValueError, match=words):
            dn.Pool.open(path)


def test_open_refuses_other_files(tmp_path):
    for name in ("x.csv", "x", "x.npz", "x.pt"):
        (tmp_path / name).write_text("1,2,3")
        with pytest.raises(ValueError, match=r"unknown kind of file; expected one of \.npy, \.safetensors"):
            dn.Pool.open(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        dn.Pool.open(tmp_path / "missing.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ValueError, match="not a regular file"):
        dn.Pool.open(tmp_path / "folder.npy")


def test_repr():
    assert repr(dn.Pool(X)) == "Pool(4 conversations, d=3, float64)"
    assert (
        repr(dn.Pool.from_completions(X, [0, 4])) == "Pool(6 conversations from 4 completions, d=3, float64)"
    )


@pytest.mark.parametrize("field", ["<f8", "<f4", ">u2", "<i2"])
def test_a_field_named_bfloat16_that_holds_something_else_is_refused(tmp_path, field):
    stored = np.zeros((2, 3), np.dtype([("bfloat16", field)]))
    with pytest.raises(ValueError, match="differences has dtype"):
        dn.Pool(stored)
    np.save(tmp_path / "x.npy", stored)
    with pytest.raises(ValueError, match="differences has dtype"):
        dn.Pool.open(tmp_path / "x.npy")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_completions_are_rows_that_share_their_storage(dtype):
    stored = t.store(np.random.default_rng(9).standard_normal((40, 3)), dtype)
    pool = dn.Pool.from_completions(stored, [0, 1, 30, 40], category=[0, 1, 2])
    rows = pool.completions
    assert len(rows) == 40
    assert rows.dtype_name == dtype
    assert np.shares_memory(rows.stored(), pool.stored())
    assert rows.prompt_offsets is None
    assert (rows.take(np.arange(40)) == dn.Pool(stored).take(np.arange(40))).all()
    listed = dn.Pool.from_pairs(stored, [[0, 1]]).completions
    assert (listed.block(0, 40) == rows.block(0, 40)).all()
    theta = np.arange(3.0)
    assert (dn.margin(rows, theta) == dn.margin(dn.Pool(stored), theta)).all()
    with pytest.raises(ValueError, match="this pool holds differences"):
        _ = rows.completions


def test_completions_of_a_file_are_streamed_like_the_pool(tmp_path):
    stored = np.random.default_rng(9).standard_normal((400, 3)).astype(np.float32)
    np.save(tmp_path / "phi.npy", stored)
    pool = dn.Pool.open(tmp_path / "phi.npy", prompt_offsets=[0, 150, 400], working_memory=2048)
    rows = pool.completions
    assert rows.rows is None
    assert len(rows) == 400
    assert (dn.margin(rows, np.arange(3.0)) == dn.margin(stored, np.arange(3.0))).all()
    assert (np.vstack([block for _, _, block in rows.blocks()]) == stored).all()
