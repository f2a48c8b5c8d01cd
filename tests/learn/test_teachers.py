"""Teachers: simulated ones draw from the model, replayed ones repeat the record, people answer in files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_learn._philox import philox, uniform
from dal_learn.conversations import Conversations, Texts
from dal_learn.teachers import (
    AnswerError,
    HumanTeachers,
    ReplayedTeachers,
    SimulatedTeachers,
    Teachers,
    Votes,
    side_swapped,
)

# ------------------------------------------------------------------------------------------------ philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers published with Random123
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    assert philox(np.array(counter, np.uint64)[:, None], key)[:, 0].tolist() == words


def test_uniform_is_uniform_and_cells_are_independent():
    u = uniform(3, np.arange(200)[:, None], np.arange(100))
    assert u.shape == (200, 100) and u.min() >= 0 and u.max() < 1
    # 20,000 draws: the mean's standard error is 0.002, a correlation's 0.007.
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.std() - 12**-0.5) < 0.01
    for other in (uniform(4, np.arange(200)[:, None], np.arange(100)), np.roll(u, 1, 0), np.roll(u, 1, 1)):
        assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 0.03


def test_uniform_beyond_32_bits():
    assert uniform(0, 2**32, 0) != uniform(0, 0, 0)
    assert uniform(2**40, 0, 0) != uniform(0, 0, 0)


# --------------------------------------------------------------------------------------------- simulated


def simulated(seed=0, n=40, m=5, **more):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 3))
    beta = rng.lognormal(size=(m, 2))
    return SimulatedTeachers(x, [1.0, -1.0, 0.5], beta, rng.integers(0, 2, n), seed, **more)


@given(st.permutations(list(range(60))), st.integers(0, 59))
@settings(max_examples=25, deadline=None)
def test_simulated_answers_do_not_depend_on_order_or_batches(order, cut):
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, 40, 60), rng.integers(0, 5, 60)
    i, j = np.unique(np.stack([i, j]), axis=1)
    together = simulated().ask(i, j, 1)
    order = [k for k in order if k < len(i)]
    apart = simulated()
    first = apart.ask(i[order[:cut]], j[order[:cut]], 1)
    second = apart.ask(i[order[cut:]], j[order[cut:]], 2)
    assert np.array_equal(np.concatenate([first, second]), together[order])


def test_simulated_frequencies_are_the_models():
    t = SimulatedTeachers([[0.7], [-2.0]], [1.0], [[1.5], [-0.5]], lapse=0.2, seed=11)
    for i, u in enumerate((0.7, -2.0)):
        for j, beta in enumerate((1.5, -0.5)):
            expected = 0.1 + 0.8 / (1 + np.exp(-beta * u))
            assert t.probability([i], [j])[0] == pytest.approx(expected, rel=1e-14)
            labels = t.ask([i] * 20_000, [j] * 20_000, 1)
            assert set(labels) == {0.0, 1.0}
            assert abs(labels.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000)


def test_asking_again():
    t = SimulatedTeachers(np.zeros((50, 1)), [1.0], [1.0], seed=3)
    i, j = np.arange(50), np.zeros(50, int)
    first = t.ask(i, j, 1)
    assert np.array_equal(t.ask(i, j, 1), first)  # the same round: the same answers
    second = t.ask(i, j, 2)
    assert not np.array_equal(second, first)
    assert np.array_equal(t.ask(i, j, 1), first) and np.array_equal(t.ask(i, j, 2), second)
    # Asked twice at once is the same as asked in two rounds.
    both = SimulatedTeachers(np.zeros((50, 1)), [1.0], [1.0], seed=3).ask(np.tile(i, 2), np.tile(j, 2), 9)
    assert np.array_equal(both, np.concatenate([first, second]))


def test_seeds_differ_and_extreme_margins_are_certain():
    assert not np.array_equal(
        simulated(1).ask(range(40), [0] * 40, 1), simulated(2).ask(range(40), [0] * 40, 1)
    )
    t = SimulatedTeachers([[1e50], [-1e50]], [1e250], [1.0])
    assert t.ask([0, 1], [0, 0], 1).tolist() == [1.0, 0.0]


def test_teachers_on_a_schedule_change_from_round_to_round():
    schedule = [[1.0, 1.0], [1.0, -1.0], [1.0, 0.0]]
    t = SimulatedTeachers([[100.0]], [1.0], [1.0, 1.0], schedule=schedule)
    chances = [t.probability([0, 0], [0, 1], round).tolist() for round in (0, 1, 2, 3, 9)]
    assert chances == [[1, 1], [1, 1], [1, pytest.approx(0)], [1, 0.5], [1, 0.5]]
    assert [t.ask([0, 0], [0, 1], round).tolist() for round in (1, 2)] == [[1, 1], [1, 0]]
    for wrong in ([[1.0]], np.ones((0, 2)), [1.0, 1.0], [[1.0, np.nan]]):
        with pytest.raises(ValueError, match="schedule"):
            SimulatedTeachers([[1.0]], [1.0], [1.0, 1.0], schedule=wrong)


def test_simulated_from_conversations_and_pool():
    c = Conversations.from_completions(
        np.random.default_rng(0).normal(size=(5, 2)), [0, 3, 5], prompt_category=[1, 0]
    )
    beta = [[1.0, 3.0], [0.1, -2.0]]
    every = [SimulatedTeachers(source, [1.0, 2.0], beta, seed=4) for source in (c, c.pool())]
    every.append(SimulatedTeachers(c.differences(), [1.0, 2.0], beta, c.category, seed=4))
    for t in every:
        assert t.margin == pytest.approx(c.differences() @ [1.0, 2.0], rel=1e-14)
        assert t.category.tolist() == [1, 1, 1, 0]
        assert t.names == ("teacher-00", "teacher-01") and isinstance(t, Teachers) and t.admissible() is None
        assert np.array_equal(
            t.ask([0, 1, 2, 3], [0, 1, 0, 1], 1), every[0].ask([0, 1, 2, 3], [0, 1, 0, 1], 1)
        )


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("reward has length 1; expected 2", {"reward": [1.0]}),
        ("rationality has 1 categories", {"rationality": [[1.0]]}),
        ("rationality is not finite", {"rationality": [[1.0, np.nan]]}),
        ("seed is -1", {"seed": -1}),
        ("seed is 1.5", {"seed": 1.5}),
        ("below 2\\*\\*64", {"seed": 2**64}),
        ("lapse is 2", {"lapse": 2.0}),
        ("lapse is -0.1", {"lapse": -0.1}),
        ("names has length 2; expected 1", {"names": ["a", "b"]}),
        ("names\\[0\\] is ''", {"names": [""]}),
        ("names is one string", {"names": "a"}),
        ("cost has length 2", {"cost": [1, 2]}),
        ("cost\\[0\\] is not positive", {"cost": [0.0]}),
        ("category has length 1", {"category": [0]}),
    ],
)
def test_simulated_refusals(words, arguments):
    arguments = {"reward": [1.0, 1.0], "rationality": [[1.0, 1.0]], "category": [0, 1], **arguments}
    with pytest.raises(ValueError, match=words):
        SimulatedTeachers(np.eye(2), **arguments)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("conversation holds 40", ([40], [0], 1)),
        ("conversation holds -1", ([-1], [0], 1)),
        ("teacher holds 5", ([0], [5], 1)),
        ("teacher has length 2; expected 1", ([0], [0, 1], 1)),
        ("round is -1", ([0], [0], -1)),
        ("conversation has dtype float64", ([0.5], [0], 1)),
    ],
)
def test_asking_what_is_not_there(words, asked):
    with pytest.raises(ValueError, match=words):
        simulated().ask(*asked)


# ----------------------------------------------------------------------------------------------- votes


def test_votes_number_their_repetitions():
    v = Votes([3, 0, 3, 3, 0], [1, 1, 1, 0, 1], [1, 0, 0.5, 1, 1], teacher_names=["a", "b"])
    assert v.repetition.tolist() == [0, 0, 1, 0, 1]
    part = v.subset([2, 3])
    assert part.conversation.tolist() == [3, 3] and part.repetition.tolist() == [1, 0]
    assert part.teacher_names == ("a", "b") and len(part) == 2
    with pytest.raises(ValueError, match="read-only"):
        v.label[0] = 0
    with pytest.raises(ValueError, match="indices reach from 0 to 5, expected 0 to 4"):
        v.subset([0, 5])


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (r"label\[1\] is 2", {"label": [0, 2]}),
        ("label is not finite", {"label": [0, np.nan]}),
        ("label has length 1", {"label": [0]}),
        ("teacher has length 1", {"teacher": [0]}),
        ("teacher holds 1; expected teachers between 0 and 0", {"teacher_names": ["a"]}),
        ("conversation holds -1", {"conversation": [-1, 0]}),
        ("'a' twice", {"teacher_names": ["a", "a"]}),
        (
            r"vote 1 repeats \(conversation 0, teacher 1, repetition 3\)",
            {"teacher": [1, 1], "repetition": [3, 3]},
        ),
        ("repetition holds -1", {"repetition": [-1, 0]}),
    ],
)
def test_votes_refusals(words, arguments):
    with pytest.raises(ValueError, match=words):
        Votes(**{"conversation": [0, 0], "teacher": [0, 1], "label": [0, 1], **arguments})


# -------------------------------------------------------------------------------------------- replayed


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2)), max_size=40),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_replay_gives_back_the_record_in_any_order(rows, seed):
    i, j, y = (np.array([row[k] for row in rows], int) for k in range(3))
    votes = Votes(i, j, y / 2, teacher_names=list("abcd"))
    t = ReplayedTeachers(votes, 6, seed)
    recorded: dict[tuple[int, int], list[float]] = {}
    for a, b, label in zip(i.tolist(), j.tolist(), votes.label.tolist(), strict=True):
        recorded.setdefault((a, b), []).append(label)
    assert {tuple(cell) for cell in np.argwhere(t.admissible().toarray()).tolist()} == set(recorded)
    cells = sorted(recorded)
    one = t.ask([c[0] for c in cells], [c[1] for c in cells], 1)
    other = ReplayedTeachers(votes, 6, seed).ask([c[0] for c in cells[::-1]], [c[1] for c in cells[::-1]], 7)
    assert np.array_equal(one, other[::-1])
    # Asked as often as recorded, a cell gives exactly its answers.
    all_of_it = ReplayedTeachers(votes, 6, seed).ask(i, j, 1)
    for cell, labels in recorded.items():
        assert sorted(all_of_it[(i == cell[0]) & (j == cell[1])]) == sorted(labels)


def test_the_seed_picks_the_repetition():
    votes = Votes(np.repeat(np.arange(200), 2), np.zeros(400, int), np.tile([0, 1], 200))
    labels = np.array([ReplayedTeachers(votes, 200, s).ask(range(200), [0] * 200, 1) for s in range(5)])
    assert 0.42 < labels.mean() < 0.58 and (labels.std(axis=0) > 0).mean() > 0.8


def test_replay_refusals():
    votes = Votes([0, 1], [0, 1], [1, 0], teacher_names=["anna", "bert"])
    t = ReplayedTeachers(votes, 2)
    with pytest.raises(ValueError, match="conversation 0 has no recorded answer of teacher 'bert'"):
        t.ask([1, 0], [1, 1], 1)
    assert t.ask([0], [0], 1).tolist() == [1.0]
    with pytest.raises(ValueError, match="asked 2 times of teacher 'anna'; expected at most the 1 recorded"):
        t.ask([0], [0], 2)
    with pytest.raises(ValueError, match="conversation holds 1; expected conversations between 0 and 0"):
        ReplayedTeachers(votes, 1)
    with pytest.raises(ValueError, match="votes is list"):
        ReplayedTeachers([], 1)


def test_replay_of_nothing():
    t = ReplayedTeachers(Votes([], [], []), 0)
    assert t.admissible().shape == (0, 0) and t.ask([], [], 1).shape == (0,)


# ----------------------------------------------------------------------------------------------- human

NAMES = ["anna", "bert", "=cmd"]


def talk(n=6):
    texts = Texts([f"prompt {p}" for p in range(n)], [f"text {r}" for r in range(2 * n)])
    return Conversations.from_completions(np.eye(2 * n), 2 * np.arange(n + 1), texts=texts)


def human(folder, **more):
    return HumanTeachers(folder, NAMES, talk(), **more)


def questions(folder, round=1):
    return [json.loads(line) for line in (folder / f"round-{round:04d}.jsonl").read_text().splitlines()]


def answer(folder, rows, name="round-0001.answers.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(conversation, teacher, word, **more):
    return {"conversation": conversation, "teacher": teacher, "answer": word, **more}


def test_people_see_shuffled_sides_and_no_trace_of_them(tmp_path):
    t = HumanTeachers(tmp_path, NAMES, talk(6), seed=2)
    i, j = np.repeat(np.arange(6), 3), np.tile(np.arange(3), 6)
    assert np.isnan(t.ask(i, j, 1)).all()
    shown = questions(tmp_path)
    assert all(set(q) == {"conversation", "teacher", "prompt", "left", "right"} for q in shown)
    swapped = []
    for q in shown:
        i_q = int(q["conversation"])
        a, b = f"text {2 * i_q}", f"text {2 * i_q + 1}"
        assert q["prompt"] == f"prompt {i_q}" and {q["left"], q["right"]} == {a, b}
        swapped.append(q["left"] == b)
        assert swapped[-1] == side_swapped(2, q["conversation"], q["teacher"])
    assert True in swapped and False in swapped
    # Everyone always answers "text 2k + 1", completion b: the labels must all be 1 whatever the side.
    answer(
        tmp_path,
        [
            row(
                q["conversation"],
                q["teacher"],
                "right" if q["right"].endswith(("1", "3", "5", "7", "9")) else "left",
            )
            for q in shown
        ],
    )
    assert (t.ask(i, j, 1) == 1).all()
    # The noted sides count, not the seed of whoever reads them.
    assert (human(tmp_path, seed=99).ask(i[::-1], j[::-1], 1) == 1).all()


def test_words_and_csv_and_partial_batches(tmp_path):
    t = human(tmp_path)
    i, j = [0, 1, 2, 3, 4], [0, 0, 2, 1, 1]
    t.ask(i, j, 1)
    (tmp_path / "round-0001.answers.csv").write_bytes(
        b"\xef\xbb\xbfanswer,note,teacher,conversation\r\n LEFT ,x,anna,0\r\n"
        b"Tie,,anna,1\r\nright,,'=cmd,2\r\n,,bert,3\r\n"
    )
    labels = t.ask(i, j, 1)
    sides = [side_swapped(0, str(a), NAMES[b]) for a, b in zip(i, j, strict=True)]
    assert labels[0] == float(sides[0]) and labels[1] == 0.5 and labels[2] == float(not sides[2])
    assert np.isnan(labels[3:]).all()
    assert t.pending() == [(1, "3", "bert"), (1, "4", "bert")]
    # Another person's file is added to it; who skips declines, and an answer later on counts.
    answer(tmp_path, [row(3, "bert", "skip"), row("4", "bert", "left")], "round-0001.answers-bert.jsonl")
    assert np.isnan(t.ask(i, j, 1)[3]) and t.ask(i, j, 1)[4] == float(sides[4])
    assert t.declined(i, j, 1).tolist() == [False, False, False, True, False] and t.pending() == []
    answer(tmp_path, [row("3", "bert", "left")], "round-0001.answers-later.jsonl")
    assert not np.isnan(t.ask(i, j, 1)).any() and t.pending() == []
    assert not t.declined(i, j, 1).any()


def test_the_same_answer_twice_is_one_and_extra_fields_are_ignored(tmp_path):
    t = human(tmp_path)
    t.ask([0], [0], 1)
    answer(tmp_path, [row("0", "anna", "tie", lead_time=3.5), row(0, "anna", " TIE")])
    answer(tmp_path, [row("0", "anna", "tie")], "round-0001.answers-copy.jsonl")
    assert t.ask([0], [0], 1).tolist() == [0.5]


def test_late_answers(tmp_path):
    t = human(tmp_path)
    t.ask([0, 1], [0, 0], 1)
    t.ask([2], [1], 2)
    answer(tmp_path, [row("2", "bert", "tie"), row("1", "anna", "tie")], "round-0002.answers.jsonl")
    assert t.ask([2], [1], 2).tolist() == [0.5]
    assert t.ask([0, 1], [0, 0], 1)[1] == 0.5 and np.isnan(t.ask([0, 1], [0, 0], 1)[0])
    answer(tmp_path, [row("0", "anna", "tie")])
    assert t.ask([0, 1], [0, 0], 1).tolist() == [0.5, 0.5]
    assert t.collect() == {(1, 0, 0): 0.5, (1, 1, 0): 0.5, (2, 2, 1): 0.5} and t.rounds() == [1, 2]


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("round-0001.answers.jsonl:1: conversation 'nine' is unknown", [row("nine", "anna", "left")]),
        ("conversation None is unknown", [{"teacher": "anna", "answer": "left"}]),
        ("conversation 0.0 is unknown", [row(0.0, "anna", "left")]),
        ("conversation False is unknown", [row(False, "anna", "left")]),
        ("teacher 'eve' is unknown", [row("0", "eve", "left")]),
        ("conversation '5' was never issued to teacher 'anna'", [row("5", "anna", "left")]),
        ("conversation '0' was never issued to teacher 'bert'", [row("0", "bert", "left")]),
        ("never issued", [row("2", "bert", "left")]),  # issued in round 2 only: no answer can be there yet
        ("answer 'a' is unknown, expected left, right, tie or skip", [row("0", "anna", "a")]),
        ("answer 1 is unknown", [row("0", "anna", 1)]),
        (
            ":2: teacher 'anna' answers 'right' on conversation '0', but 'left' in round-0001.answers",
            [row("0", "anna", "left"), row("0", "anna", "right")],
        ),
        (":1: .*:2: .*:5: .*; and 2 more$", [row("x", "anna", "left")] * 7),
        ("not JSON|expected one JSON object", [[1, 2]]),
    ],
)
def test_answers_that_do_not_fit(tmp_path, words, rows):
    t = human(tmp_path)
    t.ask([0, 1], [0, 0], 1)
    t.ask([2], [1], 2)
    answer(tmp_path, rows)
    with pytest.raises(ValueError, match=words):
        t.ask([0, 1], [0, 0], 1)
    answer(tmp_path, [row("0", "anna", "tie")])  # mended: nothing of the refused file was kept
    assert t.ask([0, 1], [0, 0], 1)[0] == 0.5


def test_csv_without_its_columns(tmp_path):
    t = human(tmp_path)
    t.ask([0], [0], 1)
    (tmp_path / "round-0001.answers.csv").write_text("conversation,answer\n0,left\n")
    with pytest.raises(ValueError, match="column 'teacher' missing"):
        t.ask([0], [0], 1)


def test_a_round_keeps_its_pairs(tmp_path):
    t = human(tmp_path)
    t.ask([0, 1], [0, 1], 1)
    before = (tmp_path / "round-0001.jsonl").read_bytes()
    assert np.isnan(human(tmp_path).ask([1, 0], [1, 0], 1)).all()
    with pytest.raises(AnswerError, match="issued with other pairs"):
        t.ask([0, 1], [0, 2], 1)
    with pytest.raises(ValueError, match="occurs twice for teacher 'anna' in round 3"):
        t.ask([0, 0], [0, 0], 3)
    assert (tmp_path / "round-0001.jsonl").read_bytes() == before
    assert t.rounds() == [1]


def test_killed_between_the_two_files(tmp_path, monkeypatch):
    t = human(tmp_path)
    import dal_learn.teachers as module

    written = []

    def dies_on_the_second(path, rows):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, rows)

    write = module.write_jsonl
    monkeypatch.setattr(module, "write_jsonl", dies_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        t.ask([0, 1], [0, 1], 1)
    monkeypatch.undo()
    assert t.rounds() == []  # nobody saw a question
    assert np.isnan(human(tmp_path).ask([2], [2], 1)).all()
    assert [q["conversation"] for q in questions(tmp_path)] == ["2"]


def test_sides_of_another_campaign(tmp_path):
    human(tmp_path).ask([0], [0], 1)
    with pytest.raises(ValueError, match="does not fit these conversations and teachers"):
        HumanTeachers(tmp_path, ["zoe"], talk()).ask([0], [0], 1)
    (tmp_path / ".sides" / "round-0001.jsonl").unlink()
    with pytest.raises(ValueError, match="no such file"):
        human(tmp_path).ask([0], [0], 1)


def test_human_refusals(tmp_path):
    with pytest.raises(ValueError, match="carries no texts"):
        HumanTeachers(tmp_path, ["a"], Conversations.from_differences([[1.0]]))
    with pytest.raises(ValueError, match="'a' twice"):
        HumanTeachers(tmp_path, ["a", "a"], talk())
    with pytest.raises(ValueError, match="round is 0"):
        human(tmp_path).ask([0], [0], 0)
    assert isinstance(human(tmp_path), Teachers)
