"""Batches by other criteria than the plug-in gain: what they take, and that every pick is the oracle's."""

import numpy as np
import pytest

import dal_native as dn

# --------------------------------------------------------------------------------- the joint information

JOINT = {
    "theta": np.eye(2),
    "cross": np.zeros((2, 1)),
    "rationality": [[1.0]],
    "cell": [[0], [-1]],
    "prior_variance": 1,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"theta": np.ones((2, 3))}, r"theta has shape \(2, 3\); expected square"),
        ({"theta": [[1.0, 0.5], [0.4, 1.0]]}, "theta is not symmetric"),
        ({"cross": np.zeros((3, 1))}, "cross has length 3; expected 2, one for each feature"),
        ({"cross": np.zeros(2)}, "cross has 1 dimensions"),
        ({"rationality": np.eye(2)}, r"rationality has shape \(2, 2\); expected \(1, 1\), as cross says"),
        ({"rationality": [[np.nan]]}, r"rationality is not finite at \(0, 0\)"),
        ({"cell": [[1], [0]]}, "cell holds 1; expected cells between 0 and 0, or -1"),
        ({"cell": [[-2], [0]]}, "cell holds -2"),
        ({"cell": [0.0]}, "cell has dtype float64"),
        ({"cell": np.zeros((0, 1), int)}, r"cell is empty \(shape \(0, 1\)\)"),
        ({"prior_variance": None}, "prior_variance is None; expected a variance, because cell holds -1"),
        ({"prior_variance": -1.0}, "prior_variance holds -1; expected at least 0"),
        ({"prior_variance": [1.0, 1.0]}, r"prior_variance has shape \(2,\); expected a number or \(2, 1\)"),
    ],
)
def test_joint_informations_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dn.JointInformation(**{**JOINT, **change})


def test_joint_information_in_one_piece_is_that_in_blocks():
    whole = np.cov(np.random.default_rng(0).standard_normal((5, 40)))
    joint = dn.JointInformation.from_inverse(whole, 3, [[0, 1], [1, -1]], prior_variance=0.25)
    assert (np.block([[joint.theta, joint.cross], [joint.cross.T, joint.rationality]]) == whole).all()
    assert (joint.prior_variance == np.full((2, 2), 0.25)).all()
    with pytest.raises(ValueError, match=r"inverse has shape \(5, 5\); expected at least d = 6 rows"):
        dn.JointInformation.from_inverse(whole, 6, [0])
