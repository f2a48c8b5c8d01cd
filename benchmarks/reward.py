"""The heterogeneous fit, beside scikit-learn's homogeneous logistic regression on the same labels."""

import numpy as np

import dal_learn as dl
from benchmarks import common


class Fit:
    params = ([(64, 8), (1_000, 128), (20_000, 128)],)
    param_names = ("T, d",)
    timeout = 300

    def setup(self, size):
        self.x, self.choice, self.teacher, self.reward = common.labels(*size)

    def time_fit(self, size):
        dl.RewardModel().fit(self.x, self.choice, teacher=self.teacher, n_teachers=common.TEACHERS)

    def time_homogeneous(self, size):
        dl.RewardModel(method="homogeneous").fit(self.x, self.choice)

    def time_sklearn(self, size):
        from sklearn.linear_model import LogisticRegression

        LogisticRegression(fit_intercept=False).fit(self.x, self.choice)

    def track_cosine(self, size):
        model = dl.RewardModel().fit(self.x, self.choice, teacher=self.teacher, n_teachers=common.TEACHERS)
        return float(model.coef_ @ self.reward / np.linalg.norm(model.coef_) / np.linalg.norm(self.reward))

    track_cosine.unit = "cosine to the true reward"
