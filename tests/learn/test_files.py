"""Readers that trust nothing, writers that never leave half a file."""

from __future__ import annotations

import gzip
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dal_learn import _files as files
from dal_learn._files import (
    FileFormatError,
    atomic_write,
    file_sha256,
    fingerprint,
    read_csv,
    read_json_lines,
    read_lines,
    write_csv,
    write_jsonl,
)


def refused(words, read, *arguments, **options):
    with pytest.raises(FileFormatError, match=words):
        list(read(*arguments, **options))


# ---------------------------------------------------------------------------------------------- writing


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as file:
        file.write("new")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_old_content_stays_until_the_block_ends(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_write(target) as file:
        file.write("new")
        file.flush()
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_overwriting_can_be_forbidden(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_write(target, "wb", overwrite=False) as file:
        file.write(b"\x00first")
    with (
        pytest.raises(FileExistsError, match="exists and may not be overwritten"),
        atomic_write(target, overwrite=False),
    ):
        raise AssertionError("the block must not run")
    assert target.read_bytes() == b"\x00first"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    target = tmp_path / "a.txt"
    with pytest.raises(FileExistsError), atomic_write(target, overwrite=False) as file:
        file.write("ours")
        target.write_text("theirs")
    assert target.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_link_is_followed(tmp_path):
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    with atomic_write(link) as file:
        file.write("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_text_is_utf8_with_plain_line_ends_and_the_usual_rights(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_write(target) as file:
        file.write("é\n")
    assert target.read_bytes() == b"\xc3\xa9\n"
    plain = tmp_path / "plain.txt"
    plain.write_text("")
    assert target.stat().st_mode == plain.stat().st_mode
    with pytest.raises(ValueError, match="mode must be 'w' or 'wb'"), atomic_write(target, "a"):
        raise AssertionError("the block must not run")


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl(tmp_path / "a.jsonl", [{"x": 1.0}, {"x": float("nan")}])
    assert os.listdir(tmp_path) == []


cell = st.text(st.characters(exclude_characters="\x00\r\n", exclude_categories=["Cs"]), max_size=8)


@given(
    rows=st.lists(
        st.lists(st.one_of(cell, st.from_regex(r"'{0,2}[=+\-@\t]x", fullmatch=True)), min_size=2, max_size=2)
    )
)
def test_csv_text_comes_back_and_no_cell_is_a_formula(tmp_path_factory, rows):
    target = tmp_path_factory.mktemp("csv") / "a.csv"
    write_csv(target, ["one", "two"], rows)
    assert [list(row.values()) for _, row in read_csv(target, unescape=True)] == rows
    for _, row in read_csv(target):
        assert not any(text.startswith(("=", "+", "-", "@", "\t")) for text in row.values())


def test_numbers_are_written_as_they_are(tmp_path):
    write_csv(tmp_path / "a.csv", ["x", "y", "z"], [[-0.1, 3, None]])
    assert (tmp_path / "a.csv").read_text() == "x,y,z\n-0.1,3,\n"


# ---------------------------------------------------------------------------------------------- lines


@pytest.mark.parametrize("packed", [False, True])
def test_marks_and_line_ends_do_not_matter(tmp_path, packed):
    raw = b"\xef\xbb\xbfone\r\ntwo\n\nfour"
    target = tmp_path / "a.txt"
    target.write_bytes(gzip.compress(raw) if packed else raw)
    assert list(read_lines(target)) == [(1, "one"), (2, "two"), (3, ""), (4, "four")]


def test_sizes_are_capped_also_behind_compression(tmp_path):
    target = tmp_path / "a.txt"
    target.write_bytes(gzip.compress(b"x" * 10_000_000))
    assert target.stat().st_size < 20_000
    refused("a.txt:1: line longer than 1000 bytes", read_lines, target, max_line_bytes=1000)
    target.write_bytes(gzip.compress(b"xxxxxxxxx\n" * 1000))
    refused("a.txt:51: file longer than 500 bytes", read_lines, target, max_bytes=500)


def test_what_is_no_text_file_is_refused(tmp_path):
    target = tmp_path / "a.txt"
    refused("a.txt: no such file", read_lines, target)
    refused("not a regular file", read_lines, tmp_path)
    target.write_bytes(b"ok\n\xff\xfe")
    refused(r"a.txt:2: not UTF-8 text \(byte 1 of the line\)", read_lines, target)
    target.write_bytes(b"a\x00b")
    refused("a.txt:1: holds a NUL byte", read_lines, target)
    whole = gzip.compress(b"some text\n" * 1000)
    target.write_bytes(whole[: len(whole) // 2])
    refused("cannot be read on", read_lines, target)
    target.write_bytes(whole[:20] + b"\x55" + whole[21:])
    refused("cannot be read on|line longer", read_lines, target)


def test_an_error_survives_pickling():
    error = pickle.loads(pickle.dumps(FileFormatError("a.csv", 3, "wrong")))
    assert (str(error), error.line) == ("a.csv:3: wrong", 3)


# ---------------------------------------------------------------------------------------------- JSON lines


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"id": 1', "not JSON"),
        ("[1]", "expected one JSON object a line, found list"),
        ("3", "found int"),
        ('{"id": 1, "id": 2}', "key 'id' occurs twice"),
        ('{"a": {"b": 1, "b": 2}}', "key 'b' occurs twice"),
        ('{"x": NaN}', "NaN is not a JSON number"),
        ('{"x": -Infinity}', "-Infinity is not a JSON number"),
        ('{"x": 1e400}', "1e400 is too large for a number"),
        ('{"x": "\\ud800"}', "half of a surrogate pair"),
        ('{"x": ' + "[" * 200_000, "nested too deeply"),
        ('{"x": ' + "9" * 10_000 + "}", "digits"),
    ],
)
def test_hostile_json_is_refused_with_its_line(tmp_path, text, words):
    target = tmp_path / "a.jsonl"
    target.write_text('{"ok": 1}\n\n' + text + "\n")
    with pytest.raises(FileFormatError, match=words) as caught:
        list(read_json_lines(target))
    assert caught.value.line == 3


def test_good_json_lines(tmp_path):
    target = tmp_path / "a.jsonl"
    target.write_bytes('\ufeff{"a": "\\ud83d\\ude00", "b": [1, 2.5, null]}\r\n\r\n{}'.encode())
    assert list(read_json_lines(target)) == [(1, {"a": "\U0001f600", "b": [1, 2.5, None]}), (3, {})]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, raw):
    target = tmp_path_factory.mktemp("fuzz") / "a"
    target.write_bytes(raw)
    for read in (read_lines, read_json_lines, read_csv):
        try:
            assert isinstance(list(read(target)), list)
        except FileFormatError as error:
            assert str(error).startswith(str(target))


# ---------------------------------------------------------------------------------------------- CSV


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty, expected a header line id,label"),
        ("id,teacher\n", "column 'label' missing, expected the columns id,label"),
        ("id,label,id\n", "column 'id' occurs twice in the header"),
        ("id,label\na,1,2\n", ":2: 3 cells, expected 2"),
        ("id,label\n\na\n", ":3: 1 cells, expected 2"),
        ('id,label\n"a"b,1\n', ":2: not CSV"),
        ('id,label\n"a,1\n', "not CSV"),
        ("id,label\n" + "a" * 200_000 + ",1\n", "field larger than field limit"),
    ],
)
def test_bad_csv_is_refused(tmp_path, text, words):
    target = tmp_path / "a.csv"
    target.write_text(text)
    refused(words, read_csv, target, ["id", "label"])


def test_quotes_line_breaks_and_order_of_columns(tmp_path):
    target = tmp_path / "a.csv"
    target.write_bytes(b'\xef\xbb\xbflabel, id\r\n1,"a,\n""b"""\r\n')
    assert list(read_csv(target, ["id"])) == [(3, {"label": "1", "id": 'a,\n"b"'})]


# ---------------------------------------------------------------------------------------------- identity


def test_fingerprints_tell_sequences_apart():
    seen = {
        fingerprint(*parts)
        for parts in [("ab", "c"), ("a", "bc"), ("abc",), (b"abc",), (1,), ("1",), (1.0,), (None,), ()]
    }
    assert len(seen) == 9


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a").startswith("ba7816bf")
    assert files.MAX_LINE_BYTES < files.MAX_FILE_BYTES
