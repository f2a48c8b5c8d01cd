"""Conversations: what goes in comes out, and what does not fit is refused in words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dal_native as dn
from dal_learn.conversations import Conversations, Texts

SIZES = st.lists(st.integers(1, 5), min_size=0, max_size=6)


def made(sizes, seed=0, d=3, **more):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=int)]).astype(int)
    return Conversations.from_completions(rng.normal(size=(int(offsets[-1]), d)), offsets, **more)


def with_texts():
    texts = Texts(["p", "q"], ["p0", "p1", "q0", "q1", "q2"])
    return made([2, 3], texts=texts, prompt_category=[1, 0], gold=[1, 0, 0.5, np.nan], ids=list("wxyz"))


@given(SIZES)
def test_every_pair_inside_each_prompt_in_order(sizes):
    c = made(sizes)
    expected = []
    start = 0
    for size in sizes:
        expected += [(start + a, start + b) for a, b in itertools.combinations(range(size), 2)]
        start += size
    assert [tuple(pair) for pair in c.pairs.tolist()] == expected
    assert c.n == len(c) == len(expected)
    owner = np.repeat(np.arange(len(sizes)), [size * (size - 1) // 2 for size in sizes])
    assert c.prompt.tolist() == owner.tolist()


@given(SIZES, st.integers(0, 10))
@settings(max_examples=30)
def test_difference_is_b_minus_a(sizes, seed):
    c = made(sizes, seed)
    expected = [c.completions[b] - c.completions[a] for a, b in c.pairs]
    assert np.array_equal(c.differences(), np.reshape(expected, (c.n, 3)))
    for rows in (slice(1, 3), [0] * min(1, c.n), np.arange(c.n)[::-1]):
        assert np.array_equal(c.differences(rows), c.differences()[rows])


def test_differences_of_float32_are_subtracted_in_float64():
    rows = np.array([[1.0], [1e-9]], np.float32)
    c = Conversations.from_completions(rows, [0, 2])
    assert c.completions.dtype == np.float32
    assert c.differences()[0, 0] == float(rows[1, 0]) - 1.0


def test_blocks_do_not_show(monkeypatch):
    c = made([5, 1, 4], d=7)
    whole = c.differences()
    monkeypatch.setattr("dal_learn.conversations._BLOCK_VALUES", 8)
    assert np.array_equal(c.differences(), whole)
    with pytest.raises(ValueError, match=r"completions row 4 holds NaN"):
        Conversations.from_completions(np.vstack([np.ones((4, 7)), np.full((1, 7), np.nan)]), [0, 5])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "<f4", ">f8", "int8"])
def test_types_are_kept_or_widened(dtype):
    rows = np.array([[1, 2], [3, 5]]).astype(dtype)
    c = Conversations.from_completions(rows, [0, 2])
    assert c.completions.dtype == (np.dtype(dtype).newbyteorder("=") if "int" not in dtype else np.float64)
    assert c.differences().tolist() == [[2.0, 3.0]]


def test_bfloat16_is_widened():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rows = np.array([[1.5], [3.0]], ml_dtypes.bfloat16)
    c = Conversations.from_completions(rows, [0, 2])
    assert c.completions.dtype == np.float32 and c.differences().tolist() == [[1.5]]


def test_strided_reversed_and_read_only_input():
    base = np.arange(24.0).reshape(4, 6)
    rows = base[::-1, ::2]
    rows.flags.writeable = False
    c = Conversations.from_completions(rows, [0, 4])
    assert np.array_equal(c.completions, rows) and c.completions.flags.c_contiguous


def test_nothing_can_be_written_and_the_callers_array_still_can():
    rows = np.ones((2, 2))
    c = Conversations.from_completions(rows, [0, 2])
    for array in (c.completions, c.pairs, c.prompt_offsets, c.category, c.prompt, c.gold):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    rows[0, 0] = 5.0
    with pytest.raises(AttributeError):
        c.ids = ()


def test_pool_of_completions_and_of_differences_hold_the_same_rows():
    c = made([4, 1, 3], prompt_category=[1, 0, 2])
    pool = c.pool()
    assert pool.pair_offsets is not None  # nine conversations over eight completions: never stored
    assert np.array_equal(pool.take(np.arange(c.n)), c.differences())
    assert pool.category_of(np.arange(c.n)).tolist() == c.category.tolist()
    for other in (c.subset([0, 2]), made([4, 1, 3], category=np.arange(9) % 2), made([2, 2])):
        pool = other.pool()
        assert pool.pair_offsets is None
        assert np.array_equal(pool.take(np.arange(other.n)), other.differences())
        assert pool.category.tolist() == other.category.tolist()


def test_pool_of_given_differences():
    c = Conversations.from_differences(np.eye(3, dtype=np.float32), category=[0, 2, 1])
    pool = c.pool()
    assert isinstance(pool, dn.Pool) and pool.dtype_name == "float32"
    assert pool.category.tolist() == [0, 2, 1] and c.n_categories == 3
    assert c.completions is None and c.pairs is None and c.prompt_offsets is None


def test_subset_keeps_whole_prompts():
    c = with_texts()
    s = c.subset([3, 1])
    assert s.ids == ("z", "x") and s.prompt.tolist() == [0, 0] and s.category.tolist() == [0, 0]
    assert s.category_names == c.category_names == ("0", "1")
    assert np.array_equal(s.differences(), c.differences([3, 1]))
    assert s.completions.shape == (3, 3) and s.prompt_offsets.tolist() == [0, 3]
    assert s.texts == Texts(["q"], ["q0", "q1", "q2"], ["2", "3", "4"])
    assert np.isnan(s.gold[0]) and s.gold[1] == 0


@given(SIZES, st.data())
@settings(max_examples=50)
def test_subset_of_anything(sizes, data):
    c = made(sizes, gold=None)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=c.n, max_size=c.n)), bool)
    s = c.subset(mask)
    assert np.array_equal(s.differences(), c.differences(np.flatnonzero(mask)))
    assert [c.ids.index(name) for name in s.ids] == np.flatnonzero(mask).tolist()
    assert np.array_equal(c.completions[c.pairs[mask]], s.completions[s.pairs])
    # Two conversations of the subset share a prompt exactly if they did before.
    assert np.array_equal(s.prompt[:, None] == s.prompt, c.prompt[mask][:, None] == c.prompt[mask])
    assert len(s.prompt_offsets) - 1 == len(np.unique(c.prompt[mask]))


def test_subset_of_differences():
    c = Conversations.from_differences(np.arange(8.0).reshape(4, 2), prompt=[5, 5, 2, 9], gold=[1, 0, 1, 0])
    s = c.subset([3, 0])
    assert s.differences().tolist() == [[6, 7], [0, 1]] and s.prompt.tolist() == [1, 0]


def test_empty():
    c = Conversations.from_completions(np.zeros((0, 2)), [0])
    assert c.n == 0 and c.differences().shape == (0, 2) and c.n_categories == 1
    assert Conversations.from_differences(np.zeros((0, 2))).subset([]).n == 0


def test_ids_as_numbers_are_their_text():
    assert Conversations.from_differences(np.ones((2, 1)), ids=[7, np.int64(8)]).ids == ("7", "8")


ROWS = np.ones((4, 2))


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("completions has 1 dim", {"completions": np.ones(4)}),
        ("completions has no columns", {"completions": np.ones((4, 0))}),
        ("completions has dtype complex128", {"completions": ROWS * 1j}),
        ("completions has dtype object", {"completions": ROWS.astype(object)}),
        ("completions row 2 holds NaN or infinity", {"completions": np.array([[0], [0], [np.inf], [0.0]])}),
        ("prompt_offsets reaches from 0 to 5, expected 0 to 4", {"prompt_offsets": [0, 5]}),
        ("prompt_offsets reaches from 1 to 4", {"prompt_offsets": [1, 4]}),
        ("gives prompt 1 no completion", {"prompt_offsets": [0, 2, 2, 4]}),
        ("gives prompt 0 no completion", {"prompt_offsets": [0, -1, 4]}),
        (r"prompt_offsets has shape \(0,\)", {"prompt_offsets": []}),
        ("prompt_offsets has dtype float64", {"prompt_offsets": [0.0, 4.0]}),
        (r"pairs has shape \(4,\)", {"pairs": [0, 1, 2, 3]}),
        (r"pairs\[1\] is \[1, 2\], expected two different rows of one prompt", {"pairs": [[0, 1], [1, 2]]}),
        (r"pairs\[0\] is \[1, 1\]", {"pairs": [[1, 1]]}),
        ("pairs reach from 0 to 4, expected 0 to 3", {"pairs": [[0, 4]]}),
        ("pairs reach from -1", {"pairs": [[-1, 0]]}),
        (r"category has shape \(3,\), expected \(2,\)", {"category": [0, 0, 0]}),
        (r"category\[1\] is -1", {"category": [0, -1]}),
        ("category has dtype float64", {"category": [0.0, 1.0]}),
        ("category and prompt_category were both given", {"category": [0, 0], "prompt_category": [0, 0]}),
        (r"prompt_category has shape \(1,\), expected \(2,\)", {"prompt_category": [0]}),
        ("category holds 1, expected an index below 1", {"category": [0, 1], "category_names": ["only"]}),
        ("category_names holds a name twice", {"category_names": ["x", "x"]}),
        ("category_names is one string", {"category_names": "ab"}),
        ("category holds 99999, expected consecutive", {"category": [0, 99999]}),
        ("ids has 1 entries, expected 2", {"ids": ["a"]}),
        ("ids holds '7' twice", {"ids": ["7", 7]}),
        (r"ids\[0\] is ''", {"ids": ["", "b"]}),
        (r"ids\[1\] is 2.0", {"ids": ["a", 2.0]}),
        (r"ids\[1\] is True", {"ids": ["a", True]}),
        ("ids is one string", {"ids": "ab"}),
        (r"gold has shape \(1,\)", {"gold": [1]}),
        (r"gold\[1\] is 2.0, expected a number in \[0, 1\] or NaN", {"gold": [0, 2]}),
        (r"gold\[0\] is inf", {"gold": [np.inf, 0]}),
        ("gold holds something that is not a number", {"gold": ["good", "bad"]}),
        ("texts.prompts has 1 entries, expected 2", {"texts": Texts(["p"], list("abcd"))}),
        ("texts.completions has 1 entries, expected 4", {"texts": Texts(["p", "q"], ["a"])}),
    ],
)
def test_refusals(words, arguments):
    with pytest.raises(ValueError, match=words):
        Conversations.from_completions(**{"completions": ROWS, "prompt_offsets": [0, 2, 4], **arguments})


@pytest.mark.parametrize(
    ("words", "indices"),
    [
        ("reach from 0 to 2, expected 0 to 1", [0, 2]),
        ("reach from -1", [-1]),
        ("twice", [1, 1]),
        (r"mask of shape \(3,\)", [True, False, True]),
        ("has dtype float64", [0.5]),
        ("has 2 dim", [[0]]),
    ],
)
def test_subset_refusals(words, indices):
    with pytest.raises(ValueError, match=words):
        Conversations.from_differences(np.ones((2, 1))).subset(indices)


def test_text_refusals():
    with pytest.raises(ValueError, match="prompts is one string"):
        Texts("abc", [])
    with pytest.raises(ValueError, match=r"completions\[1\] is int"):
        Texts([], ["a", 1])
    with pytest.raises(ValueError, match="completion_ids has 1 entries, expected 2"):
        Texts([], ["a", "b"], ["x"])
