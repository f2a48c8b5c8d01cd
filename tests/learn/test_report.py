"""Reports: the words say what the numbers say, and hostile names stay text."""

from __future__ import annotations

import base64
import copy
import html.parser
import importlib.util
import re
import sys

import numpy as np
import pytest

from dal_learn import report
from dal_learn.comparison import _against

needs_plot = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None or importlib.util.find_spec("jinja2") is None,
    reason="extra 'plot' is not installed",
)


def make_results(
    gain=0.05, seeds=5, noise=0.005, teachers=("anna", "ben"), categories=("easy", "hard"), true=True
):
    rng = np.random.default_rng(0)
    base = 0.7 + 0.01 * rng.standard_normal(seeds)

    def method(mean_gain):
        final = base + mean_gain + noise * rng.standard_normal(seeds)
        curve = [[0.6, float((0.6 + f) / 2), float(f)] for f in final]
        det = [[1.0, 10.0, 20.0 + 100 * mean_gain] for _ in final]
        return {
            "accuracy": [float(f) for f in final],
            "log_loss": [0.5] * seeds,
            "log_det": [row[-1] for row in det],
            "direction_error": [None] * seeds,
            "labels": [60] * seeds,
            "seconds_selecting": [0.1] * seeds,
            "seconds_fitting": [0.1] * seeds,
            "smallest_d_efficiency": 0.9 if mean_gain else None,
            "curve": {
                "labels": [[20, 40, 60]] * seeds,
                "accuracy": curve,
                "log_loss": [[0.6, 0.5, 0.5]] * seeds,
                "log_det": det,
                "direction_error": [[None] * 3] * seeds,
            },
        }

    methods = {"dual": method(gain), "uniform": method(0.0), "apo": method(-0.02)}
    return {
        "made_by": "dal-native", "format": 1, "version": "0", "dataset": "toy", "answers": "simulated",
        "sizes": {"conversations": 90, "prompts": 30, "completions": 90, "features": 4,
                  "teachers": len(teachers), "categories": list(categories), "admissible": None},
        "budget": 60,
        "settings": {"seeds": seeds, "ridge": 1.0, "methods": list(methods), "method": "dual"},
        "methods": methods,
        "comparison": _against(methods, "uniform"),
        "asked": {
            name: {"teachers": list(teachers), "count": [[5, 7]] * len(teachers), "others": [0, 3],
                   "teachers_asked": len(teachers) + 2}
            for name in methods
        },
        "teachers": [
            {"teacher": t, "category": c, "votes": 3, "rationality": 1.0 + k, "low": 0.5, "high": 2.0,
             "standard_error": 0.3, "agreement_with_gold": 0.5, "agreement_with_reward": None,
             "true_rationality": 1.5 + k if true else None}
            for k, t in enumerate(teachers) for c in categories
        ],
        "flags": {
            "level": 0.05, "least": 20, "tested": len(teachers), "untested": 0,
            "teachers": [
                {"teacher": t, "answers": 60 - k, "rationality": 1.0, "low": 0.5, "high": 2.0,
                 "agreement": 0.7, "early_agreement": 0.8, "late_agreement": 0.6, "first_side": None,
                 "p_opposes": 1.0, "p_random": 0.9, "p_drifts": 0.01, "p_side": None,
                 "flags": [] if k else ["drifts"]}
                for k, t in enumerate(teachers)
            ],
        },
        "policy": {"radius": 1.0, "delta": 0.1, "reference": "mean", "prompts": 30, "completions": 90,
                   "prompts_where_choices_differ": 4, "prompts_vouched_for": 11, "temperature": 0.0,
                   "pessimistic": {"value": 0.9, "lower_bound": 0.5},
                   "greedy": {"value": 1.0, "lower_bound": 0.1},
                   "drawn": {name: {"estimate": [0.5, 1.0], "lower_bound": [-0.5, 0.2]}
                             for name in ("pessimistic", "greedy")},
                   "most_uncertain": [
                       {"prompt": 7, "text": "why <b>?\x1b[31m", "estimate": 1.25, "standard_deviation": 2.5,
                        "lower_bound": -1.25, "changed": True},
                       {"prompt": 2, "text": None, "estimate": 0.25, "standard_deviation": 1.5,
                        "lower_bound": -1.0, "changed": False},
                   ]},
        "shift": {"completions": [2, 8], "greedy": [[0.5, 0.2]] * 2, "pessimistic": [[0.4, 0.4]] * 2,
                  "greedy_promised": [[0.6, 1.5]] * 2, "pessimistic_promised": [[0.1, 0.2]] * 2,
                  "best": [[0.7, 1.2]] * 2},
    }  # fmt: skip


def words(results):
    return " ".join(report.sentences(results))


# -------------------------------------------------------------------------------------------------- the words


def test_a_gain_a_loss_and_chance_are_told_apart():
    assert "clear gain of 5" in words(make_results(0.05))
    loss = words(make_results(-0.05))
    assert "clear loss of 4" in loss and "uniform choice is better" in loss
    assert "within chance" in words(make_results(0.001, noise=0.05))
    assert "One seed cannot tell chance from effect" in words(make_results(0.05, seeds=1))


def test_the_best_rival_is_named_even_when_it_wins():
    assert "The best method here is not it but uniform" in words(make_results(-0.05))
    assert "not it but" not in words(make_results(0.05))


def test_labels_saved_are_counted_only_where_the_lead_lasts():
    results = make_results(0.2)
    assert report.labels_to_match(results)["dual"] == 40
    assert "after 40 of 60 labels (33% fewer)" in words(results)
    curve = results["methods"]["dual"]["curve"]
    curve["accuracy"] = [[0.6, 0.9, 0.5]] * 5
    assert report.labels_to_match(results)["dual"] is None


def test_flagged_teachers_are_named_and_the_others_counted():
    results = make_results()
    assert "Look at these teachers: anna (drifts) (2 teachers tested, 95% sure" in words(results)
    table = report.flag_table(results["flags"]["teachers"])
    assert "anna" in table and "drifts" in table and "ben" not in table
    results["flags"]["teachers"][0]["flags"] = []
    assert "No teacher is flagged" in words(results)
    assert report.flag_table(results["flags"]["teachers"]) is None
    for row in results["flags"]["teachers"]:
        row |= {"flags": ["few answers"], "p_opposes": None}
    results["flags"] |= {"tested": 0, "untested": 2}
    assert "No teacher has the 20 answers" in words(results)
    assert report.flag_table(results["flags"]["teachers"]) is None
    many = make_results(teachers=[f"t{k}" for k in range(9)])
    for row in many["flags"]["teachers"]:
        row["flags"] = ["opposes"]
    assert "t4 (opposes); and 4 more" in words(many)
    del many["flags"]  # results of an older version
    assert "Look at" not in words(many) and report.flags(many) is None


@needs_plot
@pytest.mark.parametrize("rounds", [True, False])
def test_the_figure_of_flags_has_a_panel_for_change_where_rounds_are_known(rounds):
    results = make_results()
    for row in results["flags"]["teachers"]:
        if not rounds:
            row |= {"early_agreement": None, "late_agreement": None}
    figure = report.flags(results)
    assert len(figure.axes) == 1 + rounds
    assert [text.get_text() for text in figure.axes[-1].texts] == ["drifts"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["ben", "anna"]


@needs_plot
def test_what_cannot_be_measured_is_said():
    results = make_results()
    for values in results["methods"].values():
        values["accuracy"] = [None] * 5
        values["curve"]["accuracy"] = [[None] * 3] * 5
    results["comparison"]["accuracy"] = {}
    assert "Accuracy could not be measured" in words(results)
    assert "-" in report.table(results)
    assert report.learning_curves(results) is None and report.differences(results) is None


def test_a_ceiling_near_chance_is_called_so():
    results = make_results()
    results["all_votes"] = {"accuracy": [0.51] * 5, "log_loss": [0.7] * 5, "labels": [900] * 5}
    assert "can hardly be learned from this data" in words(results)
    results["all_votes"]["accuracy"] = [0.8] * 5
    assert "the same model reaches 80.0%." in words(results)
    results["all_votes"]["accuracy"] = [0.75] * 5
    assert "the same model reaches 75.0%: on new prompts there is nothing left to win" in words(results)


def test_teachers_worse_than_a_coin_are_named_only_when_the_interval_says_so():
    results = make_results(true=False)
    assert "worse than a coin" not in words(results).replace("below 0 worse than a coin", "")
    results["teachers"][0].update(low=-2.0, high=-0.1, rationality=-1.0)
    assert "Clearly worse than a coin somewhere: anna." in words(results)


def test_one_method_alone_needs_no_comparison():
    results = make_results()
    results["methods"] = {"dual": results["methods"]["dual"]}
    results["comparison"] = None
    assert words(results).startswith("With 60 labels the dual design ranks")
    assert report.table(results).splitlines()[1].startswith("dual design")


# ------------------------------------------------------------------------------------------------- the screen


def test_tables_are_aligned_with_wide_and_hostile_text():
    text = report.aligned(["name", "n"], [["ann", "1"], ["日本", "22"], ["\x1b[2J\u202e", None]])
    lines = text.splitlines()
    assert "\x1b" not in text and "\u202e" not in text and r"\x1b[2J\u202e" in text
    assert lines[0] == "name           " + " n"
    assert lines[2] == "日本" + " " * 9 + "  " + "22"  # two columns a character
    assert report.aligned(["a", "b"], []) == "a  b"


def test_printable_leaves_ordinary_text_alone():
    assert report.printable("Zoë, 日本 – 1 < 2 & $x$") == "Zoë, 日本 – 1 < 2 & $x$"
    assert report.printable("a\r\nb\tc\x00") == r"a\r\nb\tc\x00"


# --------------------------------------------------------------------------------------------------- the page


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.sources = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.sources += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        if tag == "img":
            self.images.append(found["src"])


HOSTILE = ("<script>alert(1)</script>", "\" onload='x", "$\\frac{$", "=2+2", "日本\u202e", "a" * 300)


@needs_plot
def test_the_page_is_one_file_with_every_figure_and_no_outside_source(tmp_path):
    files = report.render(tmp_path, make_results())
    names = {path.name for path in files}
    assert names == {f"{stem}.png" for stem in report.FIGURES} | {"report.html"}
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.images) == len(report.FIGURES)
    assert all(s.startswith("data:image/png;base64,") for s in page.sources)
    for source, stem in zip(page.images, report.FIGURES, strict=True):
        assert base64.b64decode(source.split(",")[1]) == (tmp_path / f"{stem}.png").read_bytes()
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(", text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


@needs_plot
@pytest.mark.parametrize("true", [True, False])
def test_hostile_names_stay_text(tmp_path, true):
    results = make_results(teachers=HOSTILE, categories=("<b>x", "$y^{"), true=true)
    results["dataset"] = "</title><script>alert(2)</script>"
    results["teachers"][0].update(low=-2.0, high=-0.1)
    report.render(tmp_path, results)
    text = (tmp_path / "report.html").read_text()
    assert "script" not in Page(text).tags and "&lt;script&gt;alert(2)" in text


@needs_plot
def test_the_same_results_give_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in "ab":
        report.render(tmp_path / name, copy.deepcopy(make_results()))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@needs_plot
def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    import matplotlib

    matplotlib.rcParams["lines.linewidth"] = 7.5
    try:
        report.render(tmp_path, make_results())
        assert matplotlib.rcParams["lines.linewidth"] == 7.5
    finally:
        matplotlib.rcdefaults()


@needs_plot
def test_figures_without_their_numbers_are_left_out(tmp_path):
    results = make_results()
    results.update(policy=None, shift=None, teachers=[], flags=None, asked={}, comparison=None)
    names = {path.name for path in report.render(tmp_path, results)}
    assert names == {"learning_curves.png", "each_method.png", "information.png", "report.html"}


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'dal-native\[plot\]'"):
        report.render(tmp_path, make_results())
    assert list(tmp_path.iterdir()) == []


@needs_plot
def test_the_most_uncertain_prompts_are_listed_safely(tmp_path):
    results = make_results(0.05)
    text = report.uncertain_table(results["policy"]).splitlines()
    assert text[0].split()[:4] == ["prompt", "estimate", "deviation", "lower"]
    assert text[1].startswith("#7 why <b>?\\x1b[31m") and "\x1b" not in text[1]
    assert text[1].split()[-4:] == ["1.25", "2.50", "-1.25", "yes"]
    assert text[2].split() == ["#2", "0.25", "1.50", "-1.00", "no"]
    report.render(tmp_path, results)
    page = (tmp_path / "report.html").read_text()
    assert "Most uncertain prompts" in page and "why &lt;b&gt;?" in page and "<b>?" not in page
    assert "11 of its 30 choices are better than the reference" in page
    results["policy"] = None
    report.render(tmp_path, results)
    assert "Most uncertain prompts" not in (tmp_path / "report.html").read_text()


@needs_plot
def test_results_from_before_prompts_were_drawn_still_render(tmp_path):
    results = make_results(0.05)
    for name in ("drawn", "most_uncertain", "prompts_vouched_for"):
        del results["policy"][name]
    assert tmp_path / "policies.png" not in report.render(tmp_path, results)
