"""Kernels of dual active learning: whom to ask about which conversation, to learn the reward fastest.

Arrays in, arrays out. Everything here needs numpy and scipy only; the learning layer is `dal_learn`.
"""

import importlib.util

if importlib.util.find_spec("dal_native._linalg") is None:
    raise ImportError(
        f"dal_native at {__path__[0]} has no compiled modules: this is the source tree, not an installed "
        "package. Run Python from another folder, or install in place with: pip install -e ."
    )

from dal_native._dispatch import (
    BackendConfigurationError,
    capabilities,
    set_threads,
    single_threaded_blas,
    use_backend,
)
from dal_native._dispatch import (
    __version__ as __version__,
)
from dal_native.information import InformationMatrix
from dal_native.nuisance import JointInformation
from dal_native.operations import (
    best_completions,
    best_teacher,
    bradley_terry_loss,
    choice_probability,
    choice_weight,
    hessian_vector,
    information_gain,
    information_matrix,
    leverage,
    margin,
    softmax_completions,
    softplus_moments,
    update_leverage,
    weighted_sum,
    weighted_sum_by_cell,
)
from dal_native.pool import Pool
from dal_native.selection import Batch, SelectionProblem, Selector, select_batch

__all__ = [
    "BackendConfigurationError",
    "Batch",
    "InformationMatrix",
    "JointInformation",
    "Pool",
    "SelectionProblem",
    "Selector",
    "best_completions",
    "best_teacher",
    "bradley_terry_loss",
    "capabilities",
    "choice_probability",
    "choice_weight",
    "hessian_vector",
    "information_gain",
    "information_matrix",
    "leverage",
    "margin",
    "select_batch",
    "set_threads",
    "single_threaded_blas",
    "softmax_completions",
    "softplus_moments",
    "update_leverage",
    "use_backend",
    "weighted_sum",
    "weighted_sum_by_cell",
]
