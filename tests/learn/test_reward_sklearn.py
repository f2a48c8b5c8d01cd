"""RewardModel among scikit-learn's estimators, and without scikit-learn."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from dal_learn.reward import RewardModel
from dal_learn.reward_cv import RewardModelCV


def test_parameters_are_kept_as_given():
    beta = [[1.0, 2.0]]
    model = RewardModel(ridge=3, rationality=beta, signed=True)
    assert model.get_params()["rationality"] is beta and model.get_params(deep=False)["ridge"] == 3
    assert repr(model) == "RewardModel(rationality=[[1.0, 2.0]], ridge=3, signed=True)"
    assert repr(RewardModel(rationality=np.ones(2))) == "RewardModel(rationality=array([1., 1.]))"
    assert model.set_params(ridge=4.0, tol=1e-3) is model and model.ridge == 4.0
    with pytest.raises(ValueError, match="'depth' is no parameter of RewardModel, expected one of "):
        model.set_params(depth=3)


def test_copies():
    model = RewardModel(ridge=2.0).fit([[1.0], [2.0]], [1, 0])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.coef_, model.coef_) and other.get_params() == model.get_params()
        assert np.array_equal(other.coef_covariance(robust=True), model.coef_covariance(robust=True))


def test_everything_works_without_sklearn(run_python):
    run_python(
        """
        import sys
        sys.modules["sklearn"] = None
        import numpy as np
        from dal_learn.reward import NotFittedError, RewardModel
        try:
            RewardModel().predict([[1.0]])
        except NotFittedError as error:
            assert "not fitted" in str(error)
        model = RewardModel().fit(np.eye(3), [0, 1, 1], [0, 1, 0])
        assert model.score(np.eye(3), [0, 1, 1]) == 1.0
        assert "torch" not in sys.modules and "matplotlib" not in sys.modules
        """
    )


def test_clone_pipeline_and_cross_validation():
    base = pytest.importorskip("sklearn.base")
    from sklearn.exceptions import NotFittedError
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    model = RewardModel(ridge=2.0, rationality=np.ones(3))
    assert np.array_equal(base.clone(model).rationality, model.rationality)
    with pytest.raises(NotFittedError, match="not fitted"):
        model.predict([[1.0]])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 3))
    y = (x @ [1.0, -1, 0.5] > 0).astype(int)
    assert base.is_classifier(model)
    assert cross_val_score(RewardModel(), x, y, cv=3).min() > 0.8
    line = make_pipeline(MaxAbsScaler(), RewardModel())
    found = GridSearchCV(line, {"rewardmodel__ridge": [0.1, 1e4]}, cv=3)
    assert found.fit(x, y).best_estimator_.score(x, y) > 0.9


#: scikit-learn's own checks that cannot hold here, with the reason.
EXCEPTIONS = {
    "check_estimators_empty_data_messages": "no labels at all give the prior",
    "check_classifiers_regression_target": "a label may lie anywhere in [0, 1]",
    "check_classifier_not_supporting_multiclass": "a third label is refused as outside [0, 1], in our words",
    "check_dtype_object": "arrays of Python objects are refused",
    "check_supervised_y_2d": "labels of two dimensions are refused, not flattened",
    "check_complex_data": "refused, in our words",
    "check_estimators_nan_inf": "refused, in our words",
    "check_supervised_y_no_nan": "refused, in our words",
    "check_fit2d_predict1d": "refused, in our words",
}


class Encoding:
    """Two labels of any kind become 0 and 1, as scikit-learn's checks expect; the rest is the model's."""

    def fit(self, X, y, *arguments, **more):
        codes = None
        if y is not None:
            y = np.asarray(y)
            codes, coded = np.unique(y, return_inverse=True)
            y = coded.reshape(y.shape) if len(codes) <= 2 else y
        super().fit(X, y, *arguments, **more)
        self.classes_ = codes
        return self

    def predict(self, X):
        answer = super().predict(X)
        return self.classes_[answer]


class EncodingModel(Encoding, RewardModel):
    pass


class EncodingModelCV(Encoding, RewardModelCV):
    def __init__(self, ridges=(1.0,), rationality_scales=(0.5,), cv=2):
        super().__init__(ridges, rationality_scales, cv=cv)


@pytest.mark.filterwarnings("ignore:Estimator EncodingModel:UserWarning")
@pytest.mark.parametrize("model", [EncodingModel(), EncodingModelCV()])
def test_scikit_learns_own_checks(model):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    found = checks.check_estimator(model, on_fail=None, on_skip=None)
    failed = {check["check_name"] for check in found if check["status"] == "failed"}
    assert failed == set(EXCEPTIONS)
    assert sum(check["status"] == "passed" for check in found) >= 40
