"""scikit-activeml's AnnotatorLogisticRegression (Raykar et al. 2010): every conversation has a true answer, a
logistic function of its features; a teacher reports it through a confusion matrix of their own. EM.

Its table of answers is conversations x teachers; a teacher's second answer on one conversation goes to a
second row of the same features. Argument 2: `annot_prior_full`, the Dirichlet prior of a row of a confusion
matrix. With its default, 1, and conversations that were asked about once, the majority vote it starts from is
each teacher's own answer, every confusion matrix is the identity, and it stays so: plain logistic regression.
"""

import sys

import numpy as np

from benchmarks.peers import exchange
from benchmarks.reward_peers import problems


def prepare(given: problems.Differences):
    from skactiveml.classifier.multiannotator import AnnotatorLogisticRegression

    conversation, teacher = np.asarray(given.conversation), np.asarray(given.teacher)
    sample, row = np.unique(
        np.stack([conversation, _repeat(conversation, teacher)]), axis=1, return_inverse=True
    )
    x = np.asarray(given.rows)[sample[0]].astype(np.float64)
    table = np.full((len(x), given.teachers), np.nan)
    table[row.ravel(), teacher] = given.choice

    def fit() -> problems.Learnt:
        model = AnnotatorLogisticRegression(
            classes=[0, 1],
            fit_intercept=False,
            weights_prior=given.ridge,
            annot_prior_full=float(sys.argv[2]),
            random_state=0,
        ).fit(x, table)
        theta = model.W_[:, 1] - model.W_[:, 0]

        def chance() -> np.ndarray:
            truth = problems.logistic(given.rows[given.held_conversation] @ theta)
            said = model.Alpha_[given.held_teacher]  # (H, 2, 2): true answer, reported answer
            return (1 - truth) * said[:, 0, 1] + truth * said[:, 1, 1]

        right = np.diagonal(model.Alpha_, axis1=1, axis2=2).mean(axis=1)
        return problems.Learnt(theta, chance, np.repeat(problems.logit(right), given.categories))

    return fit


def _repeat(conversation: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """How often this teacher was asked about this conversation before, (T,)."""
    order = np.lexsort((teacher, conversation))
    fresh = np.ones(len(order), bool)
    fresh[1:] = np.diff(conversation[order]) | np.diff(teacher[order])
    position = np.arange(len(order))
    out = np.empty(len(order), np.int64)
    out[order] = position - np.maximum.accumulate(np.where(fresh, position, 0))
    return out


if __name__ == "__main__":
    exchange.serve(
        prepare,
        "scikit-activeml",
        "skactiveml.classifier.multiannotator",
        kind=problems.Differences,
        told=problems.told,
    )
