"""Arrays of other libraries come and go by DLPack: the same memory, or one clear refusal."""

from __future__ import annotations

import ctypes
import gc
import io
import sys
import types
from typing import ClassVar

import numpy as np
import pytest

import dal_native as dn
from dal_native import _validate
from dal_native._dlpack import BFloat16Bits

X = np.arange(1.0, 13.0).reshape(4, 3)
CPU, CUDA = (1, 0), (2, 1)


class Producer:
    """What a library without NumPy looks like: nothing but DLPack."""

    def __init__(self, owner, device=CPU):
        self.owner, self.device = owner, device

    def __dlpack__(self, **options):
        return self.owner.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


class OldProducer(Producer):
    """Of DLPack before version 1: it knows no keyword but stream."""

    def __dlpack__(self, stream=None):
        return self.owner.__dlpack__()


class BareProducer:
    """Without a word on its device."""

    def __init__(self, owner):
        self.owner = owner

    def __dlpack__(self, **options):
        return self.owner.__dlpack__(**options)


# --------------------------------------------------------------------------------------- capsules by hand


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", Deleter))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("context", ctypes.c_void_p),
        ("deleter", Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


capsule_new = ctypes.pythonapi.PyCapsule_New
capsule_new.restype = ctypes.py_object
capsule_new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Handmade:
    """A producer of bfloat16 whose every field can be wrong, and who counts what he gets back."""

    lent: ClassVar[list[object]] = []  # what is lent must stay, whoever else forgets it

    def __init__(self, bits, strides=None, versioned=True, offset=0, shape=None, **wrong):
        self.bits, self.returned = bits, 0
        self.kind = Versioned if versioned else Managed
        self.name = b"dltensor_versioned" if versioned else b"dltensor"
        self.managed = made = self.kind()
        shape = bits.shape if shape is None else shape
        self.shape = (ctypes.c_int64 * len(shape))(*shape)
        self.strides = None if strides is None else (ctypes.c_int64 * len(strides))(*strides)
        tensor = made.tensor
        tensor.data, tensor.byte_offset = bits.ctypes.data - offset, offset
        tensor.device[:] = wrong.get("device", CPU)
        tensor.ndim = wrong.get("ndim", len(shape))
        tensor.code, tensor.bits, tensor.lanes = wrong.get("dtype", (4, 16, 1))
        tensor.shape = ctypes.cast(self.shape, ctypes.POINTER(ctypes.c_int64))
        tensor.strides = ctypes.cast(self.strides, ctypes.POINTER(ctypes.c_int64))
        made.deleter = self.deleter = Deleter(self.take_back)
        if versioned:
            made.version[:] = (wrong.get("major", 1), 0)
            made.flags = wrong.get("flags", 0)

    def take_back(self, _):
        self.returned += 1
        self.lent.remove(self)

    def __dlpack__(self, **_):
        self.lent.append(self)
        return capsule_new(ctypes.addressof(self.managed), self.name, None)


def bfloat16(numbers):
    """The upper halves of float32: exact for the small whole numbers used here."""
    return (np.asarray(numbers, np.float32).view(np.uint32) >> 16).astype(np.uint16)


# ------------------------------------------------------------------------------------------------ coming in


@pytest.mark.parametrize("made", [Producer, OldProducer, BareProducer])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_numpy_behind_dlpack_is_taken_without_a_copy(made, dtype, backend):
    x = X.astype(dtype)
    pool = dn.Pool(made(x))
    assert pool.dtype_name == np.dtype(dtype).name
    assert np.shares_memory(pool.rows, x)
    assert dn.margin(pool, np.ones(3), backend=backend).tolist() == X.sum(axis=1).tolist()


@pytest.mark.parametrize("versioned", [True, False])
def test_bfloat16_of_any_producer_is_taken_without_a_copy(versioned, backend):
    bits = bfloat16(X)
    owner = Handmade(bits, versioned=versioned)
    pool = dn.Pool(owner)
    assert pool.dtype_name == "bfloat16"
    assert np.shares_memory(pool.rows, bits)
    assert dn.margin(pool, np.ones(3), backend=backend).tolist() == X.sum(axis=1).tolist()
    view = pool.rows[1:]
    del pool
    gc.collect()
    assert owner.returned == 0  # somebody still looks
    assert view.tolist() == bits[1:].tolist()
    del view
    gc.collect()
    assert owner.returned == 1


def test_bfloat16_of_other_layouts():
    bits = bfloat16(X)
    transposed = Handmade(bits, strides=(1, 3), shape=(3, 4))
    assert (dn.Pool(transposed).take([0, 1, 2]) == X.T).all()
    backwards = np.asarray(BFloat16Bits(Handmade(bits, strides=(3, 1)).__dlpack__(), (1,)))
    assert backwards.flags.c_contiguous
    assert np.shares_memory(dn.Pool(Handmade(bits, offset=64)).rows, bits)
    assert dn.Pool(Handmade(bits[:0])).rows.shape == (0, 3)
    assert np.asarray(BFloat16Bits(Handmade(bits, shape=()).__dlpack__(), (1,))).shape == ()
    numbers = _validate.floats(Handmade(bfloat16([1.0, 2.0])), "reward", 1)
    assert numbers.tolist() == [1.0, 2.0]


def test_read_only_memory_stays_so():
    x = X.copy()
    x.flags.writeable = False
    taken = _validate.array(Producer(x), "x")
    assert np.shares_memory(taken, x)
    assert not taken.flags.writeable
    bits = _validate.array(Handmade(bfloat16(X), flags=1), "x")
    assert not bits.flags.writeable
    assert _validate.array(Handmade(bfloat16(X)), "x").flags.writeable
    with pytest.raises(ValueError, match=r"x cannot be read as an array: .*readonly"):
        _validate.array(OldProducer(x), "x")  # it cannot say so, and must not hand out what may be written to
    locked, open_to_all = (BFloat16Bits(Handmade(bfloat16(X), flags=k).__dlpack__(), (1,)) for k in (1, 0))
    with pytest.raises(TypeError, match="read-write"):
        io.BytesIO(b"1234").readinto(locked)
    assert io.BytesIO(b"1234").readinto(open_to_all) == 4


def test_strided_rows_are_copied_once_into_the_pool():
    wide = np.arange(24.0).reshape(4, 6)
    pool = dn.Pool(Producer(wide[:, ::2]))
    assert not np.shares_memory(pool.rows, wide)
    assert (pool.rows == wide[:, ::2]).all()
    assert np.shares_memory(_validate.array(Producer(wide[:, ::2]), "x"), wide)


def test_torch_tensors_behind_dlpack():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for made in (Producer, OldProducer, BareProducer, lambda tensor: tensor):
            x = torch.tensor(X, dtype=dtype)
            pool = dn.Pool(made(x))
            assert pool.rows.ctypes.data == x.data_ptr()
            assert pool.dtype_name == str(dtype).removeprefix("torch.")
            assert (pool.take([0, 1, 2, 3]) == X).all()
            x.fill_(2.0)
            assert (pool.take([3]) == 2.0).all()  # the same memory, whoever writes to it
    strided = torch.tensor(X, dtype=torch.bfloat16)[:, ::2]
    assert (dn.Pool(strided).take([0, 1, 2, 3]) == X[:, ::2]).all()
    assert _validate.array(strided, "x").ctypes.data == strided.data_ptr()


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"device": CUDA}, r"x cannot be read as an array"),
        ({"dtype": (4, 16, 2)}, "x cannot be read as an array"),
        ({"dtype": (9, 8, 1)}, "x cannot be read as an array"),  # a kind that is newer than we are
        ({"ndim": -1}, "x cannot be read as an array"),
        ({"ndim": 65}, "x cannot be read as an array"),
        ({"shape": (4, -3)}, "x cannot be read as an array"),
        ({"major": 2}, "x cannot be read as an array"),
    ],
)
def test_capsules_that_do_not_fit_are_refused_and_left_to_their_owner(wrong, words):
    owner = Handmade(bfloat16(X), **wrong)
    with pytest.raises(ValueError, match=words):
        _validate.array(owner, "x")
    capsule = owner.__dlpack__()
    with pytest.raises(BufferError):
        BFloat16Bits(capsule, (1,))
    assert "used" not in repr(capsule)


def test_a_capsule_is_used_once():
    owner = Handmade(bfloat16(X))
    capsule = owner.__dlpack__()
    taken = np.asarray(BFloat16Bits(capsule, (1,)))
    with pytest.raises(BufferError, match="not an unused DLPack capsule"):
        BFloat16Bits(capsule, (1,))
    for other in (None, 1, capsule_new(1, b"something else", None)):
        with pytest.raises(BufferError, match="not an unused DLPack capsule"):
            BFloat16Bits(other, (1,))
    assert taken.tolist() == bfloat16(X).tolist()


@pytest.mark.parametrize(("device", "words"), [(CUDA, "CUDA:1"), ((99, 0), "type 99:0")])
def test_other_devices_are_refused_before_anybody_reads(device, words):
    class Elsewhere(Producer):
        def __dlpack__(self, **_):
            pytest.fail("read from another device")

        def __array__(self, *_, **__):
            pytest.fail("copied from another device")

    with pytest.raises(
        ValueError, match=f"differences lives on device {words}; expected an array on the CPU"
    ):
        dn.Pool(Elsewhere(X, device))


def test_pinned_memory_is_host_memory():
    assert np.shares_memory(dn.Pool(Producer(X, (3, 0))).rows, X)


def test_what_a_producer_raises_is_said_in_one_sentence():
    class Broken(Producer):
        def __dlpack__(self, **_):
            raise BufferError("this array is lazy")

    class Lost(Producer):
        def __dlpack_device__(self):
            raise RuntimeError("no device")

    with pytest.raises(ValueError, match="x cannot be read as an array: this array is lazy"):
        _validate.array(Broken(X), "x")
    with pytest.raises(ValueError, match="x cannot be read as an array: no device"):
        _validate.array(Lost(X), "x")
    with pytest.raises(ValueError, match="has dtype bool"):
        dn.Pool(Producer(X > 3))


# ------------------------------------------------------------------------------------------------ going out


def all_results(x, M, one, backend):
    """Every operation on rows, and those of margins, with what they return."""
    beta = [1.0, 2.0]
    u = dn.margin(x, one, backend=backend)
    batch = dn.select_batch(x, one, beta, M, 2, backend=backend)
    return {
        "margin": u,
        "leverage": dn.leverage(x, M, backend=backend),
        "information_gain": dn.information_gain(x, one, beta, M, backend=backend),
        "information_matrix": dn.information_matrix(x, np.ones(4), backend=backend),
        "weighted_sum": dn.weighted_sum(x, np.ones(4), backend=backend),
        "weighted_sum_by_cell": dn.weighted_sum_by_cell(x, np.ones(4), [0, 1, 0, 1], 2, backend=backend),
        "hessian_vector": dn.hessian_vector(x, np.ones(4), one, backend=backend),
        "choice_probability": dn.choice_probability(u, 1.0, backend=backend),
        "choice_weight": dn.choice_weight(1.0, u, backend=backend),
        "softplus_moments": dn.softplus_moments(u, np.ones(4), backend=backend),
        "best_teacher": dn.best_teacher(u, None, beta, backend=backend)[0],
        "weight": dn.best_teacher(u, None, beta, backend=backend)[1],
        "conversation": batch.conversation,
        "teacher": batch.teacher,
        "gain": batch.gain,
    }


def test_what_goes_in_as_torch_comes_out_as_torch(backend):
    torch = pytest.importorskip("torch")
    plain = all_results(X, np.eye(3), np.ones(3), backend)
    found = all_results(torch.tensor(X), torch.eye(3), torch.ones(3), backend)
    for name, result in found.items():
        assert isinstance(plain[name], np.ndarray), name
        assert isinstance(result, torch.Tensor), name
        assert result.device.type == "cpu"
        assert result.numpy().dtype == plain[name].dtype
        assert (result.numpy() == plain[name]).all(), name
    batch = dn.select_batch(torch.tensor(X), torch.ones(3), [1.0], torch.eye(3), 2, backend=backend)
    assert isinstance(batch.log_det_gain, float)
    assert len(batch) == 2
    assert "2 pairs" in repr(batch)
    selector = dn.Selector(torch.tensor(X))
    assert isinstance(selector.select(torch.ones(3), [1.0], torch.eye(3), 2).teacher, torch.Tensor)


def test_what_goes_in_as_an_array_of_the_standard_comes_out_as_one(backend):
    xp = pytest.importorskip("array_api_strict")
    plain = all_results(X, np.eye(3), np.ones(3), backend)
    found = all_results(xp.asarray(X), xp.eye(3), xp.ones(3), backend)
    for name, result in found.items():
        assert result.__array_namespace__() is xp, name
        assert (np.from_dlpack(result) == plain[name]).all(), name
    elsewhere = xp.asarray(X, device=xp.Device("device1"))
    with pytest.raises(ValueError, match="cannot be read as an array"):
        dn.Pool(elsewhere)


def test_results_go_out_without_a_copy():
    torch = pytest.importorskip("torch")
    result = dn.margin(X, np.ones(3))
    assert torch.from_dlpack(result).data_ptr() == result.ctypes.data
    assert _validate.like_input(result, "torch").data_ptr() == result.ctypes.data
    batch = dn.select_batch(X, np.ones(3), [1.0], np.eye(3), 2)
    for picks in (batch.conversation, batch.teacher, batch.gain):
        assert torch.from_dlpack(picks).data_ptr() == picks.ctypes.data


@pytest.mark.parametrize("trouble", [TypeError("no float64 here"), None])
def test_a_library_that_cannot_hold_the_numbers_gets_numpy(trouble, monkeypatch):
    """JAX, unless told otherwise, knows no float64: the numbers matter more than their home."""

    def from_dlpack(array):
        if trouble is not None:
            raise trouble
        return array.astype(np.float32)

    library = types.ModuleType("narrow_library")
    library.from_dlpack = from_dlpack
    monkeypatch.setitem(sys.modules, "narrow_library", library)

    class Array(Producer):
        def __array_namespace__(self):
            return library

    result = dn.margin(Array(X), np.ones(3))
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float64


@pytest.mark.parametrize("namespace", [lambda: np, lambda: 1 / 0, lambda: types.ModuleType("unheard_of")])
def test_without_a_namespace_of_its_own_results_are_numpy(namespace):
    class Array(Producer):
        def __array_namespace__(self):
            return namespace()

    assert isinstance(dn.margin(Array(X), np.ones(3)), np.ndarray)


def test_a_pool_in_numpy_shares_its_rows():
    torch = pytest.importorskip("torch")
    pool = dn.Pool(torch.tensor(X))
    plain = pool.in_numpy()
    assert np.shares_memory(plain.rows, pool.rows)
    assert isinstance(dn.margin(plain, np.ones(3)), np.ndarray)
    assert isinstance(dn.margin(pool, np.ones(3)), torch.Tensor)
    assert plain.in_numpy() is plain
