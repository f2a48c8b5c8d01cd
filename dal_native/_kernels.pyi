from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

def simd_level() -> str: ...
def available_levels() -> list[str]: ...

class RowFile:
    def __init__(
        self,
        path: str,
        named: bool,
        descriptor: int,
        scattered: int,
        state: tuple[int, int, int, int],
        first_rows: Integers,
        offsets: Integers,
        storage: str,
        rows: int,
        d: int,
        working_memory: int,
    ) -> None: ...

class PoolView:
    def __init__(
        self,
        rows: NDArray[Any] | RowFile,
        dtype_name: str,
        category: NDArray[np.int32],
        prompt_offsets: Integers | None,
        pair_offsets: Integers | None,
        pair_rows: Integers | None,
    ) -> None: ...

def first_nonfinite(rows: NDArray[Any], dtype_name: str, threads: int) -> int: ...
def margin(pool: PoolView, reward: Floats, out: Floats, threads: int) -> None: ...
def choice_probability(margin: Floats, rationality: Floats, out: Floats, threads: int) -> None: ...
def choice_weight(margin: Floats, rationality: Floats, out: Floats, threads: int) -> None: ...
def softplus_moments(mean: Floats, sd: Floats, out: Floats, threads: int) -> None: ...
def best_teacher(
    margin: Floats,
    category: NDArray[np.int32],
    rationality: Floats,
    available: NDArray[np.uint8],
    out_teacher: Integers,
    out_weight: Floats,
    threads: int,
) -> None: ...
def leverage(
    pool: PoolView,
    inverse_factor: Floats,
    conversations: Integers | None,
    single: bool,
    reference: Floats | None,
    out: Floats,
    threads: int,
) -> None: ...
def information_gain(
    pool: PoolView,
    reward: Floats,
    rationality: Floats,
    inverse_factor: Floats,
    conversations: Integers | None,
    out: Floats,
    threads: int,
) -> None: ...
def information_matrix(
    pool: PoolView, weight: Floats, ridge: float, single: bool, out: Floats, threads: int
) -> None: ...
def weighted_sum(pool: PoolView, weight: Floats, out: Floats, threads: int) -> None: ...
def hessian_vector(pool: PoolView, weight: Floats, vector: Floats, out: Floats, threads: int) -> None: ...
def weighted_sum_by_cell(
    pool: PoolView, row: Integers | None, weight: Floats, cell: Integers, out: Floats, threads: int
) -> None: ...
def best_completions(
    pool: PoolView,
    reward: Floats,
    prompt_weight: Floats,
    prompt_groups: Integers,
    allowed: NDArray[np.uint8] | None,
    row: Integers,
    best: Floats,
    mean: Floats,
    threads: int,
) -> None: ...
def softmax_completions(
    pool: PoolView,
    reward: Floats,
    temperature: float,
    base_policy: Floats | None,
    prompt_weight: Floats,
    prompt_groups: Integers,
    log_partition: Floats,
    expected: Floats,
    mean: Floats,
    probability: Floats,
    threads: int,
) -> None: ...
def update_leverage(
    pool: PoolView, direction: Floats, coefficient: float, out: Floats, threads: int
) -> None: ...
def bradley_terry_loss(
    pool: PoolView,
    choice: Floats,
    reward: Floats,
    rationality: Floats,
    sample_weight: Floats,
    out_gradient: Floats,
    out_rationality_gradient: Floats,
    threads: int,
) -> float: ...
def select_batch(
    pool: PoolView,
    reward: Floats,
    rationality: Floats,
    upper: Floats | None,
    matrix: Floats,
    factor: Floats,
    inverse_factor: Floats,
    inverse_norm: float,
    spectrum: Callable[[], tuple[NDArray[np.float64], NDArray[np.float64]] | None] | None,
    available: NDArray[np.uint8],
    capacity: Integers,
    cost: Floats | None,
    blocked: NDArray[np.uint8] | None,
    exclude_conversation: Integers | None,
    exclude_offsets: Integers | None,
    exclude_teacher: Integers | None,
    candidate_offsets: Integers | None,
    candidate_teacher: Integers | None,
    size: int,
    repeats: int,
    optimism: float,
    dense: bool,
    route: str,
    known_leverage: NDArray[np.float32] | None,
    known_scale: float,
    leverage_out: NDArray[np.float32] | None,
    threads: int,
    progress: Callable[[int, int], object] | None,
) -> dict[str, Any]: ...
