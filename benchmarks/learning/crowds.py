"""Simulated crowds: conversations, teachers who differ, and a truth to measure against."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from dal_learn.conversations import Conversations
from dal_learn.sources import read_folder

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Stands for differences of sentence vectors on their leading d principal axes: in `ukp_convarg` under the
#: offline encoder the standard deviation of axis k falls as k^-0.20, and 98 % of the lengths are within 0.56
#: to 1.42 of their root mean square.
SENTENCES = common.Spectrum(exponent=0.2, tail=24.0)

#: Where real preference data may lie: named by DAL_SHARED_DATA, or beside the repository.
DATA = Path(os.environ.get("DAL_SHARED_DATA") or common.ROOT.parent / "shared" / "data")


class NoTexts(RuntimeError):
    """The texts or their encoder are not at hand; the message says which."""


@dataclass(frozen=True)
class Setting:
    """A kind of crowd, and how much may be asked of it.

    Parameters
    ----------
    words : str
        What it is, for tables.
    d, m, C : int
        Features, teachers, categories.
    spread : float
        Standard deviation of log|rationality|.
    common_share : float
        Share of that variance which all categories of a teacher have in common.
    opposed : float
        Share of the teachers whose rationality is negative; above 0 every fit is told that some may be.
    texts : str, optional
        Folder of real texts whose encoded differences are the conversations; `SENTENCES` by default.
    margin : float
        Standard deviation of the margins x'theta, at rationality 1.
    n, held_out : int
        Conversations to ask about, and at most so many more to measure on.
    budget, batch, seed_labels : int
        Labels in all, in a round, and in the first round, which is random and the same for every method.
    """

    words: str
    d: int = 48
    m: int = 20
    C: int = 1
    spread: float = 0.8
    common_share: float = 0.5
    opposed: float = 0.0
    texts: str | None = None
    margin: float = 2.0
    n: int = 8_000
    held_out: int = 4_000
    budget: int = 800
    batch: int = 20
    seed_labels: int = 40


#: The loop is measured in each of these.
SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "table": Setting("d = 48, m = 20, spread 0.8"),
        "texts": Setting("the same on real texts", texts="ukp_convarg"),
        "mild": Setting("d = 24, m = 50, spread 0.5", d=24, m=50, spread=0.5),
        "wide": Setting("d = 96, m = 20, spread 0.8", d=96),
        "categories": Setting("d = 48, m = 20, C = 5, spread 0.8", C=5),
        "extreme": Setting("d = 48, m = 10, C = 2, spread 1.2", m=10, C=2, spread=1.2),
        "adversaries": Setting("d = 48, m = 20, spread 0.8, a quarter opposed", opposed=0.25),
    }
)
#: What teacher modelling buys is measured along these spreads of log rationality.
SPREADS = (0.0, 0.25, 0.5, 0.8, 1.2, 1.6)
SPREAD_SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {f"spread {spread:g}": Setting(f"spread {spread:g}", spread=spread) for spread in SPREADS}
)
#: For a try: seconds instead of minutes.
SMALL: Mapping[str, Setting] = MappingProxyType(
    {
        "small": Setting("small", d=6, m=4, spread=1.0, n=300, held_out=400, budget=60, seed_labels=20),
        "spread 1": Setting("small", d=6, m=4, spread=1.0, n=300, held_out=400, budget=60, seed_labels=20),
    }
)


@dataclass(frozen=True, eq=False)
class Crowd:
    """One draw of a setting.

    Attributes
    ----------
    conversations : Conversations
        `gold` is the sign of the true margin.
    train, held_out : ndarray of int
        Conversations to ask about, and to measure on.
    reward : ndarray, (d,)
    rationality : ndarray, (m, C)
    """

    conversations: Conversations
    train: Integers
    held_out: Integers
    reward: Floats
    rationality: Floats


@functools.lru_cache(maxsize=1)
def text_differences(name: str, d: int, encoder: str = "offline") -> NDArray[np.float32]:
    """Differences of encoded real texts on their d leading singular directions: (n, d).

    Raises
    ------
    NoTexts
        The data or the encoder are not at hand.
    """
    folder = DATA / name
    if not folder.is_dir():
        raise NoTexts(f"no folder {name} of real texts: set DAL_SHARED_DATA")
    try:
        rows = read_folder(folder, encoder=encoder).conversations.differences()
    except ImportError as error:
        raise NoTexts(str(error)) from None
    basis = np.linalg.svd(rows, full_matrices=False)[2][:d]
    return np.asarray(rows @ basis.T, np.float32)


def crowd(setting: Setting, seed: int) -> Crowd:
    """The conversations, the truth and the teachers of a seed.

    Rows have a root mean square length of 1, as sentence vectors have; theta has a random direction and the
    length that gives the margins their standard deviation.

    Raises
    ------
    NoTexts
        The setting is about real texts and they are not at hand.
    """
    rng = np.random.default_rng(seed)
    s = setting
    if s.texts is None:
        rows = SENTENCES.rows(rng, s.n + s.held_out, s.d)
    else:
        every = text_differences(s.texts, s.d)
        rows = every[rng.permutation(len(every))[: s.n + s.held_out]]
    rows = rows / np.sqrt(np.mean(np.sum(rows.astype(np.float64) ** 2, axis=1))).astype(np.float32)
    reward = rng.standard_normal(s.d)
    reward *= s.margin / np.std(rows @ reward)
    own, shared = rng.standard_normal((s.m, s.C)), rng.standard_normal((s.m, 1))
    mixed = shared if s.C == 1 else np.sqrt(s.common_share) * shared + np.sqrt(1 - s.common_share) * own
    sign = np.where(rng.permutation(s.m) < round(s.opposed * s.m), -1.0, 1.0)[:, None]
    conversations = Conversations.from_differences(
        rows,
        category=rng.integers(0, s.C, len(rows)),
        category_names=[str(c) for c in range(s.C)],
        gold=(rows @ reward > 0).astype(np.float64),
    )
    everyone = np.arange(len(rows))
    return Crowd(conversations, everyone[: s.n], everyone[s.n :], reward, sign * np.exp(s.spread * mixed))
