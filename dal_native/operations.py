"""The public operations: validate, allocate, resolve the backend, call.

Results live where the input lives: torch tensors (or arrays of another library that has a namespace of the
array API standard) come out where the rows, or the first argument, are such; no number is copied on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dal_native import _dispatch, _validate
from dal_native.information import as_factor, leverage_from_factor
from dal_native.pool import Pool, as_pool

Floats = NDArray[np.float64]


def margin(pool: Any, reward: Any, *, backend: str = "auto", threads: int | None = None) -> Any:
    """Margins u_i = x_i' theta: how much the reward prefers the second completion.

    Parameters
    ----------
    pool : Pool or array_like, (n, d)
    reward : array_like, (d,)
        Reward parameter theta.
    backend, threads
        See `use_backend` and `set_threads`.

    Returns
    -------
    ndarray of float64, (n,)
        Or a torch tensor where the pool was made of one.

    Raises
    ------
    ValueError
        For a wrong shape or dtype, or a margin that overflows.

    Examples
    --------
    >>> import dal_native as dn
    >>> dn.margin([[1.0, 2.0], [3.0, 4.0]], [1.0, -1.0])
    array([-1., -1.])
    """
    pool = as_pool(pool)
    theta = _validate.reward(reward, pool.d)
    out = np.empty(len(pool))
    _dispatch.find("margin", backend)(pool, theta, out, _dispatch.threads(threads))
    _validate.finite_result(out, "margin")
    return _validate.like_input(out, pool.home)


def _home(*values: Any) -> str | None:
    """Whose arrays the result is: those of the first argument that is not NumPy's."""
    return next((module for module in map(_validate.home, values) if module), None)


def _broadcast(margin: Any, rationality: Any) -> tuple[Floats, Floats, Floats]:
    any_rank = tuple(range(33))
    u = _validate.floats(margin, "margin", any_rank)
    beta = _validate.floats(rationality, "rationality", any_rank)
    if beta.size and float(np.abs(beta).max()) > _validate.LARGEST_RATIONALITY:
        raise ValueError(f"rationality exceeds {_validate.LARGEST_RATIONALITY:g} in size")
    try:
        u_all, beta_all = np.broadcast_arrays(u, beta)
    except ValueError:
        raise ValueError(
            f"margin {u.shape} and rationality {beta.shape} do not broadcast to one shape"
        ) from None
    return np.ascontiguousarray(u_all), np.ascontiguousarray(beta_all), np.empty(u_all.shape)


def choice_probability(
    margin: Any, rationality: Any, *, backend: str = "auto", threads: int | None = None
) -> Any:
    """Probability that a teacher prefers the second completion, s(beta u), s the logistic function.

    Parameters
    ----------
    margin, rationality : array_like
        u and beta, of shapes that broadcast. A negative rationality is an adversarial teacher.

    Returns
    -------
    ndarray of float64
        Of the broadcast shape, in [0, 1].

    Raises
    ------
    ValueError
        For numbers that are not finite or shapes that do not broadcast.

    Examples
    --------
    >>> import dal_native as dn
    >>> dn.choice_probability([0.0, 1e6], 1.0)
    array([0.5, 1. ])
    """
    u, beta, out = _broadcast(margin, rationality)
    call = _dispatch.find("choice_probability", backend)
    call(u.reshape(-1), beta.reshape(-1), out.reshape(-1), _dispatch.threads(threads))
    return _validate.like_input(out, _home(margin, rationality))


def choice_weight(margin: Any, rationality: Any, *, backend: str = "auto", threads: int | None = None) -> Any:
    """Fisher information of one answer, per unit of x x': w = beta^2 s(beta u) (1 - s(beta u)).

    Parameters
    ----------
    margin, rationality : array_like
        u and beta, of shapes that broadcast.

    Returns
    -------
    ndarray of float64
        Of the broadcast shape, in [0, beta^2 / 4].

    Raises
    ------
    ValueError
        For numbers that are not finite or shapes that do not broadcast.

    Examples
    --------
    >>> import dal_native as dn
    >>> dn.choice_weight([0.0, 0.0], [1.0, 2.0])
    array([0.25, 1.  ])
    """
    u, beta, out = _broadcast(margin, rationality)
    call = _dispatch.find("choice_weight", backend)
    call(u.reshape(-1), beta.reshape(-1), out.reshape(-1), _dispatch.threads(threads))
    return _validate.like_input(out, _home(margin, rationality))


def softplus_moments(mean: Any, sd: Any, *, backend: str = "auto", threads: int | None = None) -> Any:
    """Means of the softplus sp(t) = log(1 + e^t) and of its derivatives under normal laws t ~ N(mean, sd^2).

    With s = sp' the logistic function, every term of a likelihood of choices against a normal posterior of
    the margin follows from these five.

    Parameters
    ----------
    mean, sd : array_like, (k,)
        sd of at least 0; 0 takes the functions at the mean.

    Returns
    -------
    ndarray of float64, (5, k)
        E sp(t), E s(t), E s'(t), E t s'(t), E t^2 s'(t). Each within 1e-10 (mostly 1e-12), the first relative
        to 1 + |mean| + sd; with sd = 0 to a few units in the last place. A law does not depend on its
        neighbours.

    Raises
    ------
    ValueError
        For wrong shapes, a negative sd, or numbers that are not finite.

    Examples
    --------
    >>> import dal_native as dn
    >>> softplus, logistic, *_ = dn.softplus_moments([0.0, 1e6], [0.0, 3.0])
    >>> softplus.round(6), logistic
    (array([6.93147e-01, 1.00000e+06]), array([0.5, 1. ]))
    """
    mu, sigma = _validate.floats(mean, "mean", 1), _validate.floats(sd, "sd", 1)
    _validate.length(sigma, len(mu), "sd", "mean")
    if len(sigma) and float(sigma.min()) < 0:
        raise ValueError(f"sd is negative at {int(np.argmax(sigma < 0))}; expected at least 0")
    out = np.empty((5, len(mu)))
    _dispatch.find("softplus_moments", backend)(mu, sigma, out, _dispatch.threads(threads))
    return _validate.like_input(out, _home(mean, sd))


def best_teacher(
    margin: Any,
    category: Any,
    rationality: Any,
    available: Any = None,
    *,
    backend: str = "auto",
    threads: int | None = None,
) -> tuple[Any, Any]:
    """Which available teacher's answer is worth most on each conversation. It never depends on M.

    The most rational teacher is not always the most informative: in t = |beta u| the weight t^2 s'(t) / u^2
    peaks at t = 2.39936 and falls on both sides.

    Parameters
    ----------
    margin : array_like, (n,)
        u_i.
    category : array_like of int, (n,), or None
        Category of each conversation; None is category 0 for all.
    rationality : array_like, (m, C) or (m,)
        Of each teacher in each category; teachers are ranked by the weight of its absolute value.
    available : array_like of bool, (m, C) or (m,), optional
        Which teacher may be asked in which category.

    Returns
    -------
    teacher : ndarray of int64, (n,)
        -1 where no teacher is available. Weights within 1e-12 of the largest are tied: the smallest index
        wins.
    weight : ndarray of float64, (n,)
        The weight of that teacher; 0.0 where there is none.

    Raises
    ------
    ValueError
        For wrong shapes, categories that the rationality does not cover, or numbers that are not finite.

    Examples
    --------
    >>> import dal_native as dn
    >>> teacher, weight = dn.best_teacher([0.0, 3.0], None, [1.0, 4.0])
    >>> teacher
    array([1, 0])
    """
    u = _validate.floats(margin, "margin", 1)
    c = _validate.category(category, len(u))
    beta = _validate.rationality(rationality, int(c.max()) + 1 if len(c) else 1)
    open_to = _validate.available(available, *beta.shape)
    teacher, weight = np.empty(len(u), np.int64), np.empty(len(u))
    call = _dispatch.find("best_teacher", backend)
    call(u, c, np.abs(beta), open_to, teacher, weight, _dispatch.threads(threads))
    module = _home(margin, rationality)
    return _validate.like_input(teacher, module), _validate.like_input(weight, module)


def leverage(
    pool: Any,
    M: Any,
    conversations: Any = None,
    *,
    reference: Any = None,
    precision: str = "double",
    backend: str = "auto",
    threads: int | None = None,
) -> Any:
    """Leverages h_i = x_i' M^-1 x_i: how uncertain the reward is along each difference.

    Parameters
    ----------
    pool : Pool or array_like, (n, d)
    M : InformationMatrix or array_like, (d, d)
        Symmetric, positive definite.
    conversations : array_like of int, (k,), optional
        Only these; all when absent.
    reference : array_like, (d,), optional
        nu, for rows that are completions (`Pool.completions`) and not differences: the result is
        (x_i - nu)' M^-1 (x_i - nu), the squared uncertainty of a completion's reward against the reference.
        It is subtracted from each row in float64 before anything else, so that no digits cancel.
    precision : {"double", "single"}
        "single" permits products in float32, in about half of the time: relative errors of some 1e-7 d times
        the condition of the factor of M. For first steps of a fit, not for what is reported.

    Returns
    -------
    ndarray of float64, (n,) or (k,)
        Or a torch tensor where the pool was made of one.

    Raises
    ------
    numpy.linalg.LinAlgError
        If M is not positive definite.
    ValueError
        For a wrong shape or dtype, an index out of range, a reference for a pool of pairs, or a leverage that
        overflows.

    Examples
    --------
    >>> import dal_native as dn, numpy as np
    >>> dn.leverage([[1.0, 0.0], [3.0, 4.0]], 2.0 * np.eye(2))
    array([ 0.5, 12.5])
    >>> dn.leverage([[1.0, 0.0], [3.0, 4.0]], 2.0 * np.eye(2), reference=[1.0, 0.0])
    array([ 0., 10.])
    """
    pool = as_pool(pool)
    factor = as_factor(M, pool.d)
    return leverage_from_factor(pool, factor, conversations, precision, backend, threads, reference)


def information_gain(
    pool: Any,
    reward: Any,
    rationality: Any,
    M: Any,
    conversations: Any = None,
    *,
    backend: str = "auto",
    threads: int | None = None,
) -> Any:
    """Gain in log det M of asking each teacher about each conversation: log1p(w_ij h_i).

    Parameters
    ----------
    pool : Pool or array_like, (n, d)
    reward : array_like, (d,)
    rationality : array_like, (m, C) or (m,)
    M : InformationMatrix or array_like, (d, d)
    conversations : array_like of int, (k,), optional
        Only these; all when absent. The result has k m numbers: the caller's choice.

    Returns
    -------
    ndarray of float64, (k, m)
        Natural logarithm, without a factor one half. A torch tensor where the pool was made of one.

    Raises
    ------
    numpy.linalg.LinAlgError
        If M is not positive definite.
    ValueError
        For wrong shapes or dtypes, an index out of range, or a gain that overflows.

    Examples
    --------
    >>> import dal_native as dn, numpy as np
    >>> np.exp(dn.information_gain([[1.0, 0.0]], [0.0, 0.0], [1.0, 2.0], np.eye(2))).round(6)
    array([[1.25, 2.  ]])
    """
    pool = as_pool(pool)
    theta = _validate.reward(reward, pool.d)
    beta = np.abs(_validate.rationality(rationality, pool.n_categories))
    factor = as_factor(M, pool.d)
    index = _validate.conversations(conversations, len(pool))
    out = np.empty((len(pool) if index is None else len(index), len(beta)))
    call = _dispatch.find("information_gain", backend)
    call(pool, theta, beta, factor, index, out, _dispatch.threads(threads))
    _validate.finite_result(out, "information gain", index)
    return _validate.like_input(out, pool.home)


def information_matrix(
    differences: Any,
    weight: Any,
    ridge: float = 1.0,
    *,
    signed: bool = False,
    precision: str = "double",
    backend: str = "auto",
    threads: int | None = None,
) -> Any:
    """Information matrix M = ridge I + sum_i w_i x_i x_i'.

    Parameters
    ----------
    differences : Pool or array_like, (n, d)
    weight : array_like, (n,), or float
        At least 0: `choice_weight` of each labelled pair.
    ridge : float
        At least 0; precision of the prior on theta.
    signed : bool
        Allow negative weights too (of a likelihood that is not concave); the result may be indefinite.
    precision : {"double", "single"}
        "single" permits products and sums of up to 128 rows in float32, in about half of the time. For
        preconditioners and first steps of a fit, not for what is reported.

    Returns
    -------
    ndarray of float64, (d, d)
        Symmetric.

    Raises
    ------
    ValueError
        For wrong shapes, negative or infinite numbers, or a sum that overflows.

    Examples
    --------
    >>> import dal_native as dn
    >>> dn.information_matrix([[1.0, 1.0]], [2.0], ridge=1.0)
    array([[3., 2.],
           [2., 3.]])
    """
    pool = as_pool(differences)
    w = _validate.floats(weight, "weight", (0, 1))
    if w.ndim == 0:
        w = np.full(len(pool), float(w))
    _validate.length(w, len(pool), "weight", "conversation")
    single = _validate.one_of(precision, "precision", ("double", "single")) == "single"
    if len(w) and not signed and float(w.min()) < 0:
        raise ValueError(f"weight is negative at {int(np.argmax(w < 0))}; expected weights of at least 0")
    out = np.empty((pool.d, pool.d))
    ridge = _validate.number(ridge, "ridge", 0.0)
    _dispatch.find("information_matrix", backend)(pool, w, ridge, single, out, _dispatch.threads(threads))
    if not np.isfinite(out).all():
        raise ValueError("the information matrix is not finite; expected smaller differences or weights")
    return _validate.like_input(out, pool.home)


def weighted_sum(differences: Any, weight: Any, *, backend: str = "auto", threads: int | None = None) -> Any:
    """Weighted sum of the differences, sum_t w_t x_t: one read of the rows.

    Parameters
    ----------
    differences : Pool or array_like, (n, d)
    weight : array_like, (n,)
        Of any sign.

    Returns
    -------
    ndarray of float64, (d,)

    Raises
    ------
    ValueError
        For wrong shapes, numbers that are not finite, or a sum that overflows.

    Examples
    --------
    >>> import dal_native as dn
    >>> dn.weighted_sum([[1.0, 2.0], [3.0, 4.0]], [1.0, -1.0])
    array([-2., -2.])
    """
    pool = as_pool(differences)
    w = _validate.floats(weight, "weight", 1)
    _validate.length(w, len(pool), "weight", "conversation")
    out = np.empty(pool.d)
    _dispatch.find("weighted_sum", backend)(pool, w, out, _dispatch.threads(threads))
    return _validate.like_input(_finite_sum(out), pool.home)


def hessian_vector(
    differences: Any, weight: Any, vector: Any, *, backend: str = "auto", threads: int | None = None
) -> Any:
    """Product of sum_t w_t x_t x_t' with a vector, in one read of the rows and without the matrix.

    Parameters
    ----------
    differences : Pool or array_like, (n, d)
    weight : array_like, (n,)
        Of any sign.
    vector : array_like, (d,)

    Returns
    -------
    ndarray of float64, (d,)
        sum_t w_t x_t (x_t' v).

    Raises
    ------
    ValueError
        For wrong shapes, numbers that are not finite, or a sum that overflows.

    Examples
    --------
    >>> import dal_native as dn
    >>> dn.hessian_vector([[1.0, 2.0], [3.0, 4.0]], [1.0, -1.0], [1.0, 0.0])
    array([ -8., -10.])
    """
    pool = as_pool(differences)
    w, v = _validate.floats(weight, "weight", 1), _validate.floats(vector, "vector", 1)
    _validate.length(w, len(pool), "weight", "conversation")
    _validate.length(v, pool.d, "vector", "feature")
    out = np.empty(pool.d)
    _dispatch.find("hessian_vector", backend)(pool, w, v, out, _dispatch.threads(threads))
    return _validate.like_input(_finite_sum(out), pool.home)


def weighted_sum_by_cell(
    differences: Any,
    weight: Any,
    cell: Any,
    n_cells: int,
    row: Any = None,
    *,
    backend: str = "auto",
    threads: int | None = None,
) -> Any:
    """Weighted sums of the differences of each cell (of a teacher and a category, say), in one pass.

    Parameters
    ----------
    differences : Pool or array_like, (n, d)
    weight : array_like, (k,)
        Of each entry, of any sign; without `row` an entry is a conversation, and k is n.
    cell : array_like of int, (k,)
        Cell of each entry, from 0.
    n_cells : int
    row : array_like of int, (k,), optional
        Conversation of each entry; one may have many.

    Returns
    -------
    ndarray of float64, (n_cells, d)
        Row c: the sum of weight x over the entries of cell c, added in their order.

    Raises
    ------
    ValueError
        For wrong shapes, indices out of range, numbers that are not finite, or a sum that overflows.

    Examples
    --------
    >>> import dal_native as dn
    >>> dn.weighted_sum_by_cell([[1.0], [2.0]], [1.0, 1.0, 0.5], [0, 2, 2], 3, row=[0, 0, 1])
    array([[1.],
           [0.],
           [2.]])
    """
    pool = as_pool(differences)
    w, index = _validate.floats(weight, "weight", 1), None
    if row is None:
        _validate.length(w, len(pool), "weight", "conversation")
    else:
        index = _validate.integers(row, "row", 1)
        _validate.length(index, len(w), "row", "weight")
        _validate.within(index, len(pool), "row", "conversations")
    c, cells = _validate.integers(cell, "cell", 1), _validate.whole(n_cells, "n_cells", 0)
    _validate.length(c, len(w), "cell", "weight")
    _validate.within(c, cells, "cell", "cells")
    out = np.empty((cells, pool.d))
    _dispatch.find("weighted_sum_by_cell", backend)(pool, index, w, c, out, _dispatch.threads(threads))
    return _validate.like_input(_finite_sum(out), pool.home)


def _finite_sum(out: Floats) -> Floats:
    if not np.isfinite(out).all():
        raise ValueError("the weighted sum is not finite; expected smaller differences or weights")
    return out


def best_completions(
    pool: Any,
    reward: Any,
    prompt_weight: Any = None,
    *,
    prompt_groups: Any = None,
    allowed: Any = None,
    backend: str = "auto",
    threads: int | None = None,
) -> tuple[Any, ...]:
    """Best completion of each prompt under a reward, and the mean features of the policy that chooses it.

    Every completion is read once, whether it lies in memory or in a file.

    Parameters
    ----------
    pool : Pool
        Of completions: `Pool.from_completions`, or `Pool.open` with ``prompt_offsets``.
    reward : array_like, (d,)
        theta.
    prompt_weight : array_like, (P,), optional
        Of each prompt in the sums, as given and of any sign; 1 / P when absent.
    prompt_groups : array_like of int, (G+1,), optional
        Group g holds the prompts prompt_groups[g] to prompt_groups[g+1]; from 0 to P. One group when absent.
    allowed : array_like of bool, (N,), optional
        Completions that may be chosen; every prompt needs one.
    backend, threads
        See `use_backend` and `set_threads`.

    Returns
    -------
    row : ndarray of int64, (P,)
        The chosen completion of each prompt, as a row of the pool: the first allowed one of largest
        phi'theta.
    best : ndarray of float64, (P,)
        Its phi'theta, with the bits that `margin` of ``pool.completions`` gives.
    mean : ndarray of float64, (G, d)
        Sum over the prompts of each group of weight times phi(row): with the weights absent and one group,
        x(pi) of the policy that makes these choices.

    Raises
    ------
    ValueError
        For wrong shapes, a pool of differences, a prompt without any allowed completion, or a reward or sum
        that overflows.

    Notes
    -----
    The result has the same bits for any number of threads, in memory and in a file. From a file runs of up to
    2^16 numbers, or 64 rows, are read together by each thread, whatever the working memory.

    Examples
    --------
    >>> import dal_native as dn
    >>> pool = dn.Pool.from_completions([[0.0, 1.0], [2.0, 0.0], [3.0, 1.0]], [0, 2, 3])
    >>> row, best, mean = dn.best_completions(pool, [1.0, 1.0])
    >>> row, best, mean
    (array([1, 2]), array([2., 4.]), array([[2.5, 0.5]]))
    """
    pool, offsets = _of_completions(pool)
    theta = _validate.reward(reward, pool.d)
    weight, groups = _prompts(prompt_weight, prompt_groups, len(offsets) - 1)
    open_rows = _allowed(allowed, offsets)
    row, best = np.empty(len(weight), np.int64), np.empty(len(weight))
    mean = np.empty((len(groups) - 1, pool.d))
    call = _dispatch.find("best_completions", backend)
    call(pool, theta, weight, groups, open_rows, row, best, mean, _dispatch.threads(threads))
    return _all_like_input(pool, row, best, _finite_mean(mean))


def softmax_completions(
    pool: Any,
    reward: Any,
    temperature: float,
    base_policy: Any = None,
    prompt_weight: Any = None,
    *,
    prompt_groups: Any = None,
    backend: str = "auto",
    threads: int | None = None,
) -> tuple[Any, ...]:
    """The policy pi(a|p) ~ base(a|p) exp(phi_a' theta / temperature), its mean features, reward and log Z.

    Every completion is read once, whether it lies in memory or in a file.

    Parameters
    ----------
    pool : Pool
        Of completions: `Pool.from_completions`, or `Pool.open` with ``prompt_offsets``.
    reward : array_like, (d,)
        theta.
    temperature : float
        Above 0.
    base_policy : array_like, (N,), optional
        Probability of each completion, used as given; they sum to 1 in each prompt, and 0 forbids. Uniform
        when absent.
    prompt_weight : array_like, (P,), optional
        Of each prompt in the sums, as given and of any sign; 1 / P when absent.
    prompt_groups : array_like of int, (G+1,), optional
        Group g holds the prompts prompt_groups[g] to prompt_groups[g+1]; from 0 to P. One group when absent.
    backend, threads
        See `use_backend` and `set_threads`.

    Returns
    -------
    log_partition : ndarray of float64, (P,)
        log Z_p = log sum_a base(a|p) exp(phi_a' theta / temperature).
    expected : ndarray of float64, (P,)
        E_pi phi' theta.
    mean : ndarray of float64, (G, d)
        Sum over the prompts of each group of weight times E_pi phi.
    probability : ndarray of float64, (N,)
        pi.

    Raises
    ------
    ValueError
        For wrong shapes, a pool of differences, a temperature that is not positive, a base policy that is
        none, or a reward, log Z or sum that overflows.

    Notes
    -----
    The result has the same bits for any number of threads, in memory and in a file. From a file runs of up to
    2^16 numbers, or 64 rows, are read together by each thread, whatever the working memory. The gradient of
    temperature * log Z_p in theta is E_pi phi.

    Examples
    --------
    >>> import dal_native as dn, numpy as np
    >>> pool = dn.Pool.from_completions([[0.0, 1.0], [2.0, 0.0], [3.0, 1.0]], [0, 2, 3])
    >>> log_z, u, mean, pi = dn.softmax_completions(pool, [1.0, 1.0], 1.0 / np.log(3.0))
    >>> pi.round(6), u.round(6), mean.round(6)
    (array([0.25, 0.75, 1.  ]), array([1.75, 4.  ]), array([[2.25 , 0.625]]))
    """
    pool, offsets = _of_completions(pool)
    theta = _validate.reward(reward, pool.d)
    tau = _validate.number(temperature, "temperature", 0.0)
    if tau == 0.0:
        raise ValueError("temperature is 0; expected a positive number (best_completions is its limit)")
    base = _base_policy(base_policy, offsets)
    weight, groups = _prompts(prompt_weight, prompt_groups, len(offsets) - 1)
    log_partition, expected = np.empty(len(weight)), np.empty(len(weight))
    mean, probability = np.empty((len(groups) - 1, pool.d)), np.empty(int(offsets[-1]))
    out = (log_partition, expected, mean, probability)
    call = _dispatch.find("softmax_completions", backend)
    call(pool, theta, tau, base, weight, groups, *out, _dispatch.threads(threads))
    finite = np.isfinite(log_partition) & np.isfinite(expected)
    if not finite.all():
        raise ValueError(
            f"the softmax of prompt {int(np.argmin(finite))} is not finite; "
            "expected a smaller reward or a higher temperature"
        )
    return _all_like_input(pool, log_partition, expected, _finite_mean(mean), probability)


def _all_like_input(pool: Pool, *results: NDArray[Any]) -> tuple[Any, ...]:
    return tuple(_validate.like_input(result, pool.home) for result in results)


def _base_policy(values: Any, offsets: NDArray[np.int64]) -> Floats | None:
    if values is None:
        return None
    base = _validate.floats(values, "base_policy", 1)
    _validate.length(base, int(offsets[-1]), "base_policy", "completion")
    if base.size == 0:
        return base
    if float(base.min()) < 0.0 or float(base.max()) > 2.0:
        bad = base.min() if float(base.min()) < 0.0 else base.max()
        raise ValueError(f"base_policy holds {bad:g}; expected probabilities")
    total = np.add.reduceat(base, offsets[:-1])
    wrong = ~(np.abs(total - 1.0) <= 1e-6)
    if wrong.any():
        p = int(np.argmax(wrong))
        raise ValueError(f"base_policy sums to {total[p]:g} in prompt {p}; expected 1 in every prompt")
    return base


def _of_completions(pool: Any) -> tuple[Pool, NDArray[np.int64]]:
    if not isinstance(pool, Pool) or pool.prompt_offsets is None:
        what = "holds differences" if isinstance(pool, Pool) else f"is of type {type(pool).__name__}"
        raise ValueError(f"pool {what}; expected a pool of the completions of prompts: Pool.from_completions")
    return pool, pool.prompt_offsets


def _prompts(weight: Any, groups: Any, n_prompts: int) -> tuple[Floats, NDArray[np.int64]]:
    """Weights of the prompts, (P,), and bounds of their groups, (G+1,)."""
    if weight is None:
        w = np.full(n_prompts, 1.0 / max(1, n_prompts))
    else:
        w = _validate.floats(weight, "prompt_weight", 1)
        _validate.length(w, n_prompts, "prompt_weight", "prompt")
    if groups is None:
        return w, np.array([0, n_prompts])
    bounds = _validate.integers(groups, "prompt_groups", 1)
    if len(bounds) == 0 or bounds[0] != 0 or bounds[-1] != n_prompts:
        raise ValueError(f"prompt_groups must start at 0 and end at {n_prompts}, the number of prompts")
    if (np.diff(bounds) < 0).any():
        raise ValueError(f"prompt_groups falls after {int(np.argmax(np.diff(bounds) < 0))}; expected bounds")
    return w, bounds


def _allowed(values: Any, offsets: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    if values is None:
        return None
    a = _validate.array(values, "allowed")
    if a.dtype.kind != "b" or a.ndim != 1:
        a = _validate.integers(a, "allowed", 1)
    _validate.length(a, int(offsets[-1]), "allowed", "completion")
    if a.size and (int(a.min()) < 0 or int(a.max()) > 1):
        raise ValueError("allowed holds numbers other than 0 and 1; expected true or false")
    none = np.maximum.reduceat(a, offsets[:-1]) == 0 if a.size else np.zeros(0, bool)
    if none.any():
        raise ValueError(
            f"prompt {int(np.argmax(none))} has no allowed completion; expected at least one of each"
        )
    return a.astype(np.uint8)


def _finite_mean(mean: Floats) -> Floats:
    if not np.isfinite(mean).all():
        raise ValueError("a weighted sum of completions is not finite; expected smaller ones or weights")
    return mean


def update_leverage(
    leverage: Any,
    pool: Any,
    direction: Any,
    coefficient: float,
    *,
    backend: str = "auto",
    threads: int | None = None,
) -> Floats:
    """Leverages after a rank-one update of M: h_i - coefficient (x_i' direction)^2, at least 0.

    Parameters
    ----------
    leverage : array_like, (n,)
        Before M <- M + w x x'. Unchanged; the result is new.
    pool : Pool or array_like, (n, d)
    direction : array_like, (d,)
        M^-1 x, of the old M.
    coefficient : float
        w / (1 + w x' M^-1 x), at least 0.

    Returns
    -------
    ndarray of float64, (n,)

    Raises
    ------
    ValueError
        For wrong shapes or numbers that are not finite.

    Examples
    --------
    >>> import dal_native as dn
    >>> dn.update_leverage([1.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], [1.0, 0.0], 0.5)
    array([0.5, 1. ])
    """
    pool = as_pool(pool)
    out = _validate.floats(leverage, "leverage", 1).copy()
    _validate.length(out, len(pool), "leverage", "conversation")
    v = _validate.floats(direction, "direction", 1)
    _validate.length(v, pool.d, "direction", "feature")
    c = _validate.number(coefficient, "coefficient", 0.0)
    _dispatch.find("update_leverage", backend)(pool, v, c, out, _dispatch.threads(threads))
    _validate.finite_result(out, "updated leverage")
    return out


def bradley_terry_loss(
    differences: Any,
    choice: Any,
    reward: Any,
    rationality: Any,
    sample_weight: Any = None,
    *,
    backend: str = "auto",
    threads: int | None = None,
) -> tuple[float, Floats, Floats]:
    """Negative log likelihood of answers under the Bradley-Terry model, and its gradients. No prior.

    loss = sum_t v_t (-y_t log s(b_t u_t) - (1 - y_t) log s(-b_t u_t)), u_t = x_t' theta.

    Parameters
    ----------
    differences : Pool or array_like, (T, d)
        One row per label.
    choice : array_like, (T,)
        y in [0, 1]: 1 where the second completion was preferred, 0.5 for a tie.
    reward : array_like, (d,)
        theta.
    rationality : array_like, (T,), or float
        b_t of the label's teacher in the label's category.
    sample_weight : array_like, (T,), optional
        v_t of at least 0; 1 when absent.

    Returns
    -------
    loss : float
        In nats.
    gradient : ndarray of float64, (d,)
        In theta.
    rationality_gradient : ndarray of float64, (T,)
        d loss / d b_t.

    Raises
    ------
    ValueError
        For wrong shapes, choices outside [0, 1], negative weights, or a loss that overflows.

    Examples
    --------
    >>> import dal_native as dn
    >>> loss, gradient, _ = dn.bradley_terry_loss([[2.0]], [1.0], [0.0], 1.0)
    >>> round(loss, 6), gradient
    (0.693147, array([-1.]))
    """
    pool = as_pool(differences)
    n = len(pool)
    y = _validate.floats(choice, "choice", 1)
    _validate.length(y, n, "choice", "label")
    if n and (float(y.min()) < 0 or float(y.max()) > 1):
        raise ValueError(
            f"choice is outside [0, 1] at {int(np.argmax((y < 0) | (y > 1)))}; expected 0, 1 or between"
        )
    theta = _validate.reward(reward, pool.d)
    b = _per_label(rationality, n, "rationality")
    v = np.ones(n) if sample_weight is None else _per_label(sample_weight, n, "sample_weight")
    if n and float(v.min()) < 0:
        raise ValueError(
            f"sample_weight is negative at {int(np.argmax(v < 0))}; expected weights of at least 0"
        )
    gradient, rationality_gradient = np.empty(pool.d), np.empty(n)
    call = _dispatch.find("bradley_terry_loss", backend)
    loss = float(call(pool, y, theta, b, v, gradient, rationality_gradient, _dispatch.threads(threads)))
    if not (np.isfinite(loss) and np.isfinite(gradient).all() and np.isfinite(rationality_gradient).all()):
        raise ValueError("the loss or its gradient is not finite; expected smaller differences or parameters")
    return loss, gradient, rationality_gradient


def _per_label(values: Any, n: int, name: str) -> Floats:
    a = _validate.floats(values, name, (0, 1))
    if a.ndim == 0:
        return np.full(n, float(a))
    _validate.length(a, n, name, "label")
    return a
