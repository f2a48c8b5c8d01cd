"""Learning a reward from people who differ: whom to ask about what, the reward, and a policy to rely on.

    Conversations, teachers -> Study (design, answers, fit; round after round) -> RewardModel -> policy

The kernels underneath are `dal_native`; the command line is ``dal``.
"""

from dal_native import __version__

from .best_of import BestOfN, best_of_n
from .campaign import Campaign, Design, Ledger, LedgerError, Round, Study, split_by_prompt
from .comparison import Comparison, Problem, Simulation, compare
from .conversations import Conversations, Texts
from .design import METHODS
from .encoders import get_encoder
from .flags import flag_teachers
from .pessimistic_reward import PessimisticReward, RewardEstimates
from .policy import (
    PessimisticPolicy,
    greedy_policy,
    lower_confidence_bound,
    mean_features,
    pessimistic_policy,
)
from .radius import Radius, bootstrap_radius, calibrated_radius, confidence_radius, nominal_radius
from .reward import RewardModel
from .reward_cv import RewardModelCV
from .sources import read_completions, read_conversations, read_folder, read_inputs, read_votes
from .teachers import HumanTeachers, ReplayedTeachers, SimulatedTeachers, Teachers, Votes

__all__ = [
    "METHODS",
    "BestOfN",
    "Campaign",
    "Comparison",
    "Conversations",
    "Design",
    "HumanTeachers",
    "Ledger",
    "LedgerError",
    "PessimisticPolicy",
    "PessimisticReward",
    "Problem",
    "Radius",
    "ReplayedTeachers",
    "RewardEstimates",
    "RewardModel",
    "RewardModelCV",
    "Round",
    "SimulatedTeachers",
    "Simulation",
    "Study",
    "Teachers",
    "Texts",
    "Votes",
    "__version__",
    "best_of_n",
    "bootstrap_radius",
    "calibrated_radius",
    "compare",
    "confidence_radius",
    "flag_teachers",
    "get_encoder",
    "greedy_policy",
    "lower_confidence_bound",
    "mean_features",
    "nominal_radius",
    "pessimistic_policy",
    "read_completions",
    "read_conversations",
    "read_folder",
    "read_inputs",
    "read_votes",
    "split_by_prompt",
]
