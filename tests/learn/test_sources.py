"""Files from strangers: what is read, and what is refused with file and line."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter

import numpy as np
import pytest

from dal_learn import sources
from dal_learn.conversations import Conversations
from dal_learn.policy import pessimistic_policy
from dal_learn.sources import (
    FileFormatError,
    read_completions,
    read_conversations,
    read_folder,
    read_inputs,
    read_reward,
    read_teachers,
    read_votes,
    write_csv,
    write_jsonl,
    write_policy,
    write_reward,
)
from dal_learn.teachers import ReplayedTeachers

PAIRS = [
    {
        "id": "p1",
        "prompt": "Why?",
        "response_a": "So.",
        "response_b": "No.",
        "a_id": "x",
        "b_id": "y",
        "category": "c1",
    },
    {
        "id": 2,
        "prompt": "How?",
        "response_a": "So.",
        "response_b": "Thus.",
        "a_id": "x",
        "b_id": "z",
        "gold": 1,
    },
    {
        "id": "p3",
        "prompt": "Why?",
        "response_a": "Hm.",
        "response_b": "So.",
        "a_id": "w",
        "b_id": "x",
        "category": "c1",
        "gold": 0.5,
    },
]
VOTES = [["p1", "Ann", 1, 0], ["p1", "Ann", 0, 1], ["2", "Bob", 0.5, 0], ["p3", "Ann", 0, 0]]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    write_jsonl(path / "pairs.jsonl", PAIRS)
    write_csv(path / "votes.csv", ["id", "teacher", "label", "rep"], VOTES)
    write_csv(
        path / "teachers.csv",
        ["teacher", "kind", "votes"],
        [["Bob", "human", 1], ["Ann", "human", 3], ["Zoe", "", 0]],
    )
    return path


class Lengths:
    """An encoder whose vectors can be read."""

    name, dimension, fingerprint = "lengths", 2, "lengths"

    def __init__(self):
        self.asked = []

    def encode(self, texts, progress=None):
        self.asked += texts
        return np.array([[len(text), text.count("o")] for text in texts], np.float32)


def refused(words, read, *arguments, **options):
    with pytest.raises(FileFormatError, match=words) as caught:
        read(*arguments, **options)
    assert "\n" not in str(caught.value)
    return caught.value


# ---------------------------------------------------------------------------------------------- folders


def test_a_folder_becomes_conversations_and_votes(folder):
    encoder = Lengths()
    conversations, votes, teachers = read_folder(folder, encoder=encoder)
    assert conversations.ids == ("p1", "2", "p3")
    assert conversations.prompt.tolist() == [0, 1, 0]
    assert conversations.prompt_offsets.tolist() == [0, 3, 5]
    assert conversations.texts.prompts == ("Why?", "How?")
    assert conversations.texts.completions == ("So.", "No.", "Hm.", "So.", "Thus.")
    assert conversations.texts.completion_ids == ("x", "y", "w", "x", "z")
    assert conversations.pairs.tolist() == [[0, 1], [3, 4], [2, 0]]
    assert conversations.category_names == ("c1", "all")
    assert conversations.category.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(conversations.gold, [np.nan, 1.0, 0.5])
    # one id under two prompts: two rows, one vector, encoded once
    assert sorted(encoder.asked) == ["Hm.", "No.", "So.", "Thus."]
    np.testing.assert_array_equal(conversations.completions[0], conversations.completions[3])
    assert votes.teacher_names == ("Bob", "Ann")  # the table's order; Zoe never voted
    assert list(zip(votes.conversation, votes.teacher, votes.label, votes.repetition, strict=True)) == [
        (0, 1, 1.0, 0),
        (0, 1, 0.0, 1),
        (1, 0, 0.5, 0),
        (2, 1, 0.0, 0),
    ]
    assert [row["teacher"] for row in teachers] == ["Bob", "Ann", "Zoe"]
    assert teachers[2] == {"teacher": "Zoe", "kind": None, "votes": 0.0}


def test_gzip_marks_and_line_ends_do_not_matter(folder):
    plain = read_folder(folder, encoder=Lengths())
    text = (folder / "pairs.jsonl").read_text()
    (folder / "pairs.jsonl.gz").write_bytes(
        gzip.compress(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    )
    (folder / "pairs.jsonl").unlink()
    packed = read_folder(folder, encoder=Lengths())
    assert packed.conversations.ids == plain.conversations.ids
    np.testing.assert_array_equal(packed.conversations.completions, plain.conversations.completions)


def test_the_prompt_can_be_part_of_what_is_encoded(folder):
    encoder = Lengths()
    read_folder(folder, encoder=encoder, text="prompt+response")
    assert sorted(encoder.asked) == [
        "How?\n\nSo.",
        "How?\n\nThus.",
        "Why?\n\nHm.",
        "Why?\n\nNo.",
        "Why?\n\nSo.",
    ]
    with pytest.raises(ValueError, match="text is 'prompt'"):
        read_folder(folder, encoder=encoder, text="prompt")


def test_without_ids_equal_texts_of_a_prompt_are_one_completion(tmp_path):
    rows = [
        {"id": "1", "prompt": "?", "response_a": "yes", "response_b": "no"},
        {"id": "2", "prompt": "?", "response_a": "no", "response_b": "perhaps"},
        {"id": "3", "prompt": "!", "response_a": "no", "response_b": "no"},
    ]
    write_jsonl(tmp_path / "c.jsonl", rows)
    c = read_conversations(tmp_path / "c.jsonl", encoder="hashing:8")
    assert c.prompt_offsets.tolist() == [0, 3, 5]
    assert c.pairs.tolist() == [[0, 1], [1, 2], [3, 4]]  # equal texts of one pair stay two completions
    assert not c.differences([2]).any()


def test_vectors_in_place_of_an_encoder(folder):
    np.save(folder / "embeddings.npy", np.array([[1, 0], [2, 0], [3, 0], [4, 0], [9, 9]], np.float32))
    (folder / "embeddings.ids.txt").write_text("w\nx\ny\nz\nunused\n")
    c = read_folder(folder).conversations  # found by its name
    assert c.completions.dtype == np.float32
    assert c.completions[:, 0].tolist() == [2, 3, 1, 2, 4]
    named = read_folder(folder, embeddings=folder / "embeddings.npy").conversations
    np.testing.assert_array_equal(named.completions, c.completions)
    (folder / "embeddings.ids.txt").write_text("w\nx\ny\nq\nunused\n")
    refused("no vector for completion 'z'", read_folder, folder)
    (folder / "embeddings.ids.txt").write_text("w\nx\ny\n")
    refused("embeddings.ids.txt: 3 ids, expected 5", read_folder, folder)
    (folder / "embeddings.ids.txt").write_text("w\nx\ny\nz\nw\n")
    refused("id 'w' occurs twice", read_folder, folder)
    (folder / "embeddings.ids.txt").unlink()
    refused("its ids are unknown, expected embeddings.ids.txt", read_folder, folder)


def test_safetensors_vectors_also_in_half_precision(folder):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    vectors = torch.tensor([[1.0, 0.5], [2, 0.25], [3, 0], [4, 1]], dtype=torch.bfloat16)
    save_file({"embeddings": vectors}, folder / "embeddings.safetensors")
    (folder / "embeddings.ids.txt").write_text("w\nx\ny\nz\n")
    c = read_folder(folder).conversations
    assert c.completions.dtype == np.float32
    assert c.completions.tolist() == [[2, 0.25], [3, 0], [1, 0.5], [2, 0.25], [4, 1]]


def test_folders_that_do_not_fit(tmp_path, folder):
    refused("no such folder", read_folder, tmp_path / "nowhere")
    refused("no such folder", read_folder, folder / "pairs.jsonl")
    refused("holds neither pairs.jsonl nor pairs.jsonl.gz", read_folder, tmp_path)
    refused("pairs.jsonl:1: embedding_a is missing.*name an encoder", read_folder, folder)
    with pytest.raises(ValueError, match="more than one of completions, encoder and embeddings"):
        read_folder(folder, encoder=Lengths(), embeddings="x.npy")
    (folder / "votes.csv.gz").write_bytes(b"")
    refused(r"holds both votes.csv and votes.csv.gz", read_folder, folder, encoder=Lengths())


# ---------------------------------------------------------------------------------------------- conversations


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": None}, "id is missing, expected text or a whole number"),
        ({"id": ""}, "id is ''"),
        ({"id": True}, "id is True"),
        ({"id": 1.5}, "id is 1.5"),
        ({"id": "p1"}, "id 'p1' occurs twice, first in line 1"),
        ({"prompt": None}, "prompt is missing, expected text"),
        ({"prompt": 3}, "prompt is 3, expected text"),
        ({"response_a": None}, "response_a is missing, expected text for the encoder"),
        ({"response_b": ["x"]}, r"response_b is \['x'\], expected text"),
        ({"a_id": "x", "response_a": "Else."}, "a_id 'x' had another text before"),
        ({"a_id": "x", "b_id": "x", "response_a": "So.", "response_b": "So."}, "a_id and b_id are equal"),
        ({"category": 1.5}, "category is 1.5"),
        ({"gold": 2}, "gold is 2, expected a number from 0 to 1 or null"),
        ({"gold": True}, "gold is True"),
        ({"gold": "a"}, "gold is 'a'"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path, change, words):
    row = {
        "id": "new",
        "prompt": "Why?",
        "response_a": "1",
        "response_b": "2",
        "a_id": "k",
        "b_id": "l",
        **change,
    }
    write_jsonl(tmp_path / "c.jsonl", [*PAIRS, {k: v for k, v in row.items() if v is not None}])
    error = refused(words, read_conversations, tmp_path / "c.jsonl", encoder="hashing:8")
    assert error.line == 4
    assert str(error).startswith(str(tmp_path / "c.jsonl:4: "))


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        ("[1, 2, 3]", "embedding_b has 3 features, expected 2"),
        ("[]", "embedding_b has 0 features, expected 2"),
        ('"12"', "embedding_b is '12', expected numbers"),
        ('[1, "2"]', "expected numbers"),
        ("[1, true]", "expected numbers"),
        ("[[1, 2]]", "expected numbers"),
        ("[1, null]", "expected numbers"),
        ("[1, NaN]", "NaN is not a JSON number"),
        ("[1, 1e999]", "too large for a number"),
        ("[1, " + "9" * 400 + "]", "holds NaN or infinity"),
        ("null", "embedding_b is missing"),
    ],
)
def test_wrong_embeddings_in_a_row(tmp_path, vector, words):
    good = '{"id": 1, "prompt": "", "embedding_a": [0, 1], "embedding_b": [1, 1]}\n'
    bad = '{"id": 2, "prompt": "", "embedding_a": [0, 1], "embedding_b": ' + vector + "}\n"
    (tmp_path / "c.jsonl").write_text(good + bad)
    assert refused(words, read_conversations, tmp_path / "c.jsonl").line == 2


def test_embeddings_in_rows(tmp_path):
    rows = [
        {"id": "1", "prompt": "?", "a_id": 1, "b_id": 2, "embedding_a": [0, 1.5], "embedding_b": [1, 1]},
        {"id": "2", "prompt": "?", "a_id": 2, "b_id": "3", "embedding_a": [1, 1], "embedding_b": [0, 0]},
    ]
    write_jsonl(tmp_path / "c.jsonl", rows)
    c = read_conversations(tmp_path / "c.jsonl")
    assert c.completions.tolist() == [[0, 1.5], [1, 1], [0, 0]]
    assert c.texts is None
    rows[1]["embedding_a"] = [1, 2]
    write_jsonl(tmp_path / "c.jsonl", rows)
    refused("a_id '2' had another embedding before", read_conversations, tmp_path / "c.jsonl")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "c.jsonl").write_text("\n\n")
    refused("holds no conversation", read_conversations, tmp_path / "c.jsonl")
    refused("no such file", read_conversations, tmp_path / "d.jsonl")


def test_parquet_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [
        {"id": "1", "prompt": "?", "embedding_a": [0.0, 1.0], "embedding_b": [1.0, 1.0], "gold": 1.0},
        {"id": "2", "prompt": "!", "embedding_a": [0.0, 0.0], "embedding_b": [2.0, 1.0], "gold": None},
    ]
    path = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    c = read_conversations(path)
    assert c.differences().tolist() == [[1, 0], [2, 1]]
    np.testing.assert_array_equal(c.gold, [1.0, np.nan])
    pq.write_table(pa.Table.from_pylist([*rows, {**rows[0], "id": "2"}]), path)
    assert refused("id '2' occurs twice, first in line 2", read_conversations, path).line == 3
    path.write_bytes(path.read_bytes()[:-20])
    refused("not a readable Parquet file", read_conversations, path)
    path.write_bytes(b"PAR1garbagePAR1")
    refused("not a readable Parquet file", read_conversations, path)
    refused("no such file", read_conversations, tmp_path / "d.parquet")


# ---------------------------------------------------------------------------------------- separate files


def test_completions_alone_give_every_pair(tmp_path):
    np.save(tmp_path / "phi.npy", np.arange(12.0).reshape(6, 2))
    np.save(tmp_path / "phi.offsets.npy", np.array([0, 3, 4, 6]))
    write_csv(
        tmp_path / "votes.csv", ["conversation", "teacher", "answer"], [[3, "Ann", "a"], [0, "Ann", "TIE"]]
    )
    recording = read_inputs(completions=tmp_path / "phi.npy", votes=tmp_path / "votes.csv")
    assert recording.conversations.pairs.tolist() == [[0, 1], [0, 2], [1, 2], [4, 5]]
    assert recording.votes.conversation.tolist() == [3, 0]
    assert recording.votes.label.tolist() == [0.0, 0.5]


def test_conversations_over_completions(tmp_path):
    from safetensors.numpy import save_file

    tensors = {"embeddings": np.eye(4, dtype=np.float32), "prompt_offsets": np.array([0, 2, 4])}
    save_file(tensors, tmp_path / "phi.safetensors")
    (tmp_path / "phi.ids.txt").write_text("a\nb\nc\nd\n")
    write_jsonl(tmp_path / "c.jsonl", [{"id": "1", "a_id": "d", "b_id": "c", "category": "x", "gold": 0}])
    write_csv(tmp_path / "teachers.csv", ["teacher"], [["Ann"]])
    files = {"conversations": tmp_path / "c.jsonl", "completions": tmp_path / "phi.safetensors"}
    recording = read_inputs(**files, teachers=tmp_path / "teachers.csv")
    c = recording.conversations
    assert (c.pairs.tolist(), c.prompt.tolist(), c.category_names) == ([[3, 2]], [1], ("x",))
    assert recording.teachers == ({"teacher": "Ann"},)
    assert recording.votes is None
    for row, words in [
        ({"id": "1", "a_id": "d", "b_id": "q"}, "b_id 'q' is not among the completions"),
        ({"id": "1", "a_id": "a", "b_id": "c"}, "two different completions of one prompt"),
        ({"id": "1", "a_id": "a", "b_id": "a"}, "two different completions of one prompt"),
        ({"id": "1", "a_id": "a"}, "b_id is missing"),
        ({"a_id": "a", "b_id": "b"}, "id is missing"),
    ]:
        write_jsonl(tmp_path / "c.jsonl", [row])
        assert refused(words, read_inputs, **files).line == 1


def test_completions_in_parquet_need_not_be_sorted(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [
        {"prompt": "q", "id": "1", "embedding": [1.0, 0.0]},
        {"prompt": "r", "id": "2", "embedding": [2.0, 0.0]},
        {"prompt": "q", "id": "3", "embedding": [3.0, 0.0]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "phi.parquet")
    table = read_completions(tmp_path / "phi.parquet")
    assert table.rows[:, 0].tolist() == [1, 3, 2]
    assert table.prompt_offsets.tolist() == [0, 2, 3]
    assert (table.ids, table.prompts) == (("1", "3", "2"), ("q", "r"))
    write_jsonl(
        tmp_path / "c.jsonl",
        [{"id": 1, "prompt": "q", "a_id": 1, "b_id": 3, "response_a": "?", "response_b": "!"}],
    )
    by_id = read_conversations(tmp_path / "c.jsonl", embeddings=tmp_path / "phi.parquet")
    assert by_id.differences().tolist() == [[2.0, 0.0]]
    pq.write_table(pa.Table.from_pylist([{**rows[0], "prompt": None}]), tmp_path / "phi.parquet")
    refused("prompt is missing", read_completions, tmp_path / "phi.parquet")
    pq.write_table(pa.Table.from_pylist([{"embedding": [1.0]}]), tmp_path / "phi.parquet")
    refused("has no column prompt", read_completions, tmp_path / "phi.parquet")


def test_completions_that_do_not_fit(tmp_path):
    path = tmp_path / "phi.npy"
    refused("no such file", read_completions, path)
    np.save(path, np.eye(3))
    refused("expected phi.offsets.npy beside it", read_completions, path)
    for offsets in ([0, 2], [1, 3], [0, 2, 2, 3], [0], [0, 2, 1, 3], []):
        refused("prompt_offsets must rise from 0 to 3", read_completions, path, offsets)
    refused("prompt_offsets has dtype float64", read_completions, path, [0.0, 3.0])
    (tmp_path / "phi.offsets.npy").write_bytes(b"\x93NUMPY garbage")
    refused("phi.offsets.npy: not a readable .npy file", read_completions, path)
    np.save(tmp_path / "phi.offsets.npy", np.array([0, 3], object), allow_pickle=True)
    refused("not a readable .npy file", read_completions, path)
    np.save(path, np.array([[0.0, np.nan]]))
    refused("holds NaN or infinity, first in row 0", read_completions, path, [0, 1])
    np.save(path, np.array([["a"]], object), allow_pickle=True)
    refused("phi.npy: ", read_completions, path, [0, 1])
    np.save(path, np.zeros((0, 2)))
    refused("holds no vector", read_completions, path, [0])
    np.save(path, np.eye(3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    refused("phi.npy: ", read_completions, path, [0, 3])
    (tmp_path / "phi.txt").write_text("1 2 3")
    refused("unknown kind of file", read_completions, tmp_path / "phi.txt", [0, 1])
    from safetensors.numpy import save_file

    save_file({"embeddings": np.eye(2)}, tmp_path / "phi.safetensors")
    refused("has no tensor prompt_offsets", read_completions, tmp_path / "phi.safetensors")


def test_arguments_that_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="conversations and completions are both missing"):
        read_inputs(votes="v.csv")
    np.save(tmp_path / "phi.npy", np.eye(2))
    np.save(tmp_path / "phi.offsets.npy", np.array([0, 2]))
    with pytest.raises(ValueError, match="encoder and embeddings have no use here"):
        read_inputs(completions=tmp_path / "phi.npy", encoder="hashing")


# ---------------------------------------------------------------------------------------- votes, teachers

TWO = Conversations.from_differences([[1.0], [2.0]], ids=["x", "y"])


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("0", 0),
        ("1", 1),
        ("0.5", 0.5),
        ("1.0", 1),
        (" 1 ", 1),
        ("a", 0),
        ("B", 1),
        ("tie", 0.5),
        ("0.25", 0.25),
    ],
)
def test_labels(tmp_path, text, label):
    write_csv(tmp_path / "v.csv", ["id", "teacher", "label"], [["x", "Ann", text]])
    assert read_votes(tmp_path / "v.csv", TWO).label.tolist() == [label]


@pytest.mark.parametrize(
    ("lines", "line", "words"),
    [
        (["id,teacher,label", "z,Ann,1"], 2, "conversation 'z' is not among the conversations"),
        (["id,teacher,label", "x,,1"], 2, "teacher is ''"),
        (["id,teacher,label", "x,Ann,"], 2, "label is '', expected a number from 0 to 1, a, b or tie"),
        (["id,teacher,label", "x,Ann,2"], 2, "label is '2'"),
        (["id,teacher,label", "x,Ann,-1"], 2, "label is '-1'"),
        (["id,teacher,label", "x,Ann,nan"], 2, "label is 'nan'"),
        (["id,teacher,label", "x,Ann,inf"], 2, "label is 'inf'"),
        (["id,teacher,label", "x,Ann,1_0"], 2, "label is '1_0'"),
        (["id,teacher,label", "x,Ann,left"], 2, "label is 'left'"),
        (["id,teacher,label,rep", "x,Ann,1,0", "x,Ann,1,0"], 3, "answered before, in line 2"),
        (["id,teacher,label,rep", "x,Ann,1,-1"], 2, "repetition is '-1'"),
        (["id,teacher,label,rep", "x,Ann,1,1.5"], 2, "repetition is '1.5'"),
        (["id,teacher,label,rep", "x,Ann,1," + "9" * 30], 2, "repetition is '9999"),
        (["id,teacher", "x,Ann"], 2, "answer is missing"),
        (["teacher,label", "Ann,1"], 2, "neither id nor conversation is given"),
        (["id,conversation,teacher,label", "x,y,Ann,1"], 2, "both id and conversation are given"),
        (["id,label", "x,1"], 1, "column 'teacher' missing"),
    ],
)
def test_wrong_votes_are_refused_with_their_line(tmp_path, lines, line, words):
    (tmp_path / "v.csv").write_text("\n".join(lines))
    assert refused(words, read_votes, tmp_path / "v.csv", TWO).line == line


def test_votes_without_a_repetition_column_are_counted(tmp_path):
    rows = [["x", "Ann", 1], ["y", "Ann", 0], ["x", "Ann", 0], ["x", "Bob", 1]]
    write_csv(tmp_path / "v.csv", ["id", "teacher", "label"], rows)
    assert read_votes(tmp_path / "v.csv", TWO).repetition.tolist() == [0, 0, 1, 0]


def test_votes_as_json_lines(tmp_path):
    rows = [
        {"conversation": "x", "teacher": 7, "answer": 0.5},
        {"conversation": "y", "teacher": "7", "answer": "b", "repetition": 3},
    ]
    write_jsonl(tmp_path / "v.jsonl", rows)
    votes = read_votes(tmp_path / "v.jsonl", TWO)
    assert (votes.teacher_names, votes.label.tolist(), votes.repetition.tolist()) == (
        ("7",),
        [0.5, 1.0],
        [0, 3],
    )
    for bad, words in [
        (True, "answer is True"),
        (None, "answer is missing"),
        (10**400, "answer is 1000"),
        ([1], r"answer is \[1\]"),
    ]:
        write_jsonl(tmp_path / "v.jsonl", [{**rows[0], "answer": bad}])
        refused(words, read_votes, tmp_path / "v.jsonl", TWO)


def test_a_vote_file_may_hold_no_vote(tmp_path):
    write_csv(tmp_path / "v.csv", ["id", "teacher", "label"], [])
    votes = read_votes(tmp_path / "v.csv", TWO)
    assert len(votes.label) == 0
    assert votes.teacher_names == ()


def test_teachers_table(tmp_path):
    path = tmp_path / "teachers.csv"
    path.write_text("teacher,kind,votes,agree\n7,human,12,nan\nAnn,,,0.5\n")
    assert read_teachers(path) == (
        {"teacher": "7", "kind": "human", "votes": 12.0, "agree": "nan"},
        {"teacher": "Ann", "kind": None, "votes": None, "agree": 0.5},
    )
    path.write_text("teacher\nAnn\nBob\nAnn\n")
    assert refused("teacher 'Ann' occurs twice, first in line 2", read_teachers, path).line == 4
    path.write_text("name\nAnn\n")
    refused("column 'teacher' missing", read_teachers, path)


# ---------------------------------------------------------------------------------------------- real data


def test_every_real_data_set_is_read_whole(data_set):
    """Counted against the files themselves, read the plain way."""
    with gzip.open(data_set / "pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    with gzip.open(data_set / "votes.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    conversations, votes, teachers = read_folder(data_set, encoder="hashing:16")
    assert conversations.ids == tuple(pair["id"] for pair in pairs)
    assert len(conversations.completions) == len(
        {(p["prompt"], p[s]) for p in pairs for s in ("a_id", "b_id")}
    )
    assert len(conversations.texts.prompts) == len({p["prompt"] for p in pairs})
    for k in range(0, len(pairs), 97):
        a, b = conversations.pairs[k]
        assert conversations.texts.completions[a] == pairs[k]["response_a"]
        assert conversations.texts.completions[b] == pairs[k]["response_b"]
        assert conversations.texts.prompts[conversations.prompt[k]] == pairs[k]["prompt"]
        assert conversations.category_names[conversations.category[k]] == pairs[k]["category"]
    gold = [np.nan if p["gold"] is None else p["gold"] for p in pairs]
    np.testing.assert_array_equal(conversations.gold, gold)
    found = Counter(
        (conversations.ids[i], votes.teacher_names[j], float(y), int(r))
        for i, j, y, r in zip(votes.conversation, votes.teacher, votes.label, votes.repetition, strict=True)
    )
    assert found == Counter((row["id"], row["teacher"], float(row["label"]), int(row["rep"])) for row in rows)
    assert len(teachers) == len(votes.teacher_names) == len({row["teacher"] for row in rows})
    assert np.isfinite(conversations.completions).all()


def test_real_votes_can_be_replayed(data_folder):
    conversations, votes, _ = read_folder(data_folder / "llmbar", encoder="hashing:8")
    teachers = ReplayedTeachers(votes, conversations, seed=0)
    i, j = votes.conversation[:50], votes.teacher[:50]
    assert np.isin(teachers.ask(i, j, 0), (0.0, 0.5, 1.0)).all()


# ---------------------------------------------------------------------------------------------- results


def test_a_reward_is_a_head_that_torch_loads(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    path = tmp_path / "reward.safetensors"
    write_reward(path, [1.0, -2.5, 0.1], {"seed": 3}, information=2 * np.eye(3), encoder="abc")
    head = torch.nn.Linear(3, 1, bias=False)
    head.load_state_dict({"weight": load_file(path)["score.weight"]})
    assert head(torch.tensor([[1.0, 1.0, 0.0]])).item() == pytest.approx(-1.5)
    coef, information, metadata = read_reward(path, encoder="abc")
    assert coef.tolist() == [1.0, -2.5, 0.1]
    assert information.tolist() == (2 * np.eye(3)).tolist()
    assert metadata == {"seed": 3, "encoder": "abc"}


def test_rewards_that_do_not_fit(tmp_path):
    path = tmp_path / "reward.safetensors"
    for arguments, words in [
        (([np.nan],), "coef is not finite"),
        (([[1.0]],), "coef has 2 dimensions"),
        (([1.0], {"format": 1}), "metadata holds the key 'format'"),
        (([1.0], {"x": np.inf}), "JSON"),
    ]:
        with pytest.raises(ValueError, match=words):
            write_reward(path, *arguments)
    with pytest.raises(ValueError, match="information has shape"):
        write_reward(path, [1.0], information=np.eye(2))
    assert not path.exists()
    write_reward(path, [1.0], encoder="abc")
    refused("made with encoder 'abc', expected 'xyz'", read_reward, path, encoder="xyz")
    sources.write_tensors(path, {"coef": np.ones(3)}, {})
    refused("has no tensor score.weight", read_reward, path)
    sources.write_tensors(path, {"score.weight": np.ones((1, 3)), "information": np.eye(2)}, {})
    refused(r"information has shape \(2, 2\)", read_reward, path)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        refused("reward.safetensors", read_reward, path)


def test_policies_are_written_one_prompt_a_line(folder, tmp_path):
    conversations = read_folder(folder, encoder="hashing:8").conversations
    policy = pessimistic_policy(
        conversations.completions, conversations.prompt_offsets, np.ones(8), np.eye(8), 0.0
    )
    write_policy(tmp_path / "policy.jsonl", conversations, policy.probability)
    rows = [json.loads(line) for line in (tmp_path / "policy.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["Why?", "How?"]
    for p, row in enumerate(rows):
        assert row["completions"][policy.choice[p]] == row["choice"]
        assert sum(row["probability"]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="expected completions"):
        write_policy(tmp_path / "other.jsonl", TWO, [1.0])
    with pytest.raises(ValueError, match="probability has length 1; expected 5"):
        write_policy(tmp_path / "other.jsonl", conversations, [1.0])
