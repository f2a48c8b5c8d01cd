"""The examples of docs/stacks.md run as they stand, one after the other."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "stacks.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.M | re.S)


def test_examples_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, example in enumerate(blocks("python")):
        if "import torch" in example:
            pytest.importorskip("torch", reason="the head needs the extra torch")
        exec(compile(example, f"docs/stacks.md, example {number}", "exec"), names)
    shown = capsys.readouterr().out
    assert "dal_lower_bound" in shown and "torch.Size([1, 64])" in shown
    first, second = eval(shown.splitlines()[0])
    assert first > second
    from dal_learn.cli import main

    (commands,) = blocks("sh")
    line = shlex.split(commands.splitlines()[0], comments=True)
    assert CliRunner().invoke(main, line[1:]).exit_code == 0
    written: dict[str, object] = {}
    exec(compile((tmp_path / "reward.py").read_text(), "reward.py", "exec"), written)
    answer = written["reward_func"](["q From the top.</s>"], ["q"], [None])
    assert float(answer["rewards"][0]) == pytest.approx(
        names["scorer"].reward("q", "From the top."), abs=1e-6
    )
