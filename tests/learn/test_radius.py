"""Radii of confidence sets: quantiles, their refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dal_learn.radius import confidence_radius


@pytest.mark.parametrize("d", [1, 2, 17, 512])
@pytest.mark.parametrize("delta", [0.5, 0.1, 0.001])
def test_radius_is_the_quantile(d, delta):
    assert confidence_radius(d, delta) == pytest.approx(np.sqrt(stats.chi2.ppf(1 - delta, d)), rel=1e-9)
    policy = confidence_radius(d, delta, kind="policy")
    assert policy == pytest.approx(stats.norm.ppf(1 - delta), abs=1e-9)
    assert confidence_radius(d, delta, ridge=4.0, reward_norm=3.0) == pytest.approx(
        confidence_radius(d, delta) + 6.0
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"d": 0, "delta": 0.1}, "d is 0"),
        ({"d": 2.5, "delta": 0.1}, "d is 2.5"),
        ({"d": 2, "delta": 0.0}, "delta is 0"),
        ({"d": 2, "delta": 1.0}, "delta is 1"),
        ({"d": 2, "delta": np.nan}, "delta is nan"),
        ({"d": 2, "delta": 0.6, "kind": "policy"}, "delta is 0.6"),
        ({"d": 2, "delta": 0.1, "kind": "bootstrap"}, "kind is 'bootstrap'"),
        ({"d": 2, "delta": 0.1, "ridge": 1.0}, "ridge and reward_norm must be given together"),
        ({"d": 2, "delta": 0.1, "ridge": -1.0, "reward_norm": 1.0}, "ridge is -1"),
        ({"d": 2, "delta": 0.1, "ridge": 1.0, "reward_norm": np.inf}, "reward_norm is inf"),
    ],
)
def test_radius_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        confidence_radius(**arguments)
