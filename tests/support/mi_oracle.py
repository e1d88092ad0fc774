"""Bounds of mutual information in float64, term by term from the papers, neither vectorized nor stabilized.

`score[i, j]` = f(z_i, v_j), positives on the diagonal, nats. Every function takes the whole matrix of valid pairs.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Matrix = np.ndarray


def mean(terms: Iterator[float]) -> float:
    """Mean of the terms, summed without rounding."""
    kept = list(terms)
    return math.fsum(kept) / len(kept)


def over_joint(score: Matrix, term: Callable[[float], float] = float) -> float:
    """Mean of term(f) under the joint distribution: the diagonal."""
    return mean(term(float(score[i, i])) for i in range(len(score)))


def over_product(score: Matrix, term: Callable[[float], float] = float) -> float:
    """Mean of term(f) under the product of the marginals: every z with the v of every other pair."""
    pairs = range(len(score))
    return mean(term(float(score[i, j])) for i in pairs for j in pairs if i != j)


def infonce_row(score: Matrix) -> float:
    """van den Oord et al. 2018, eq. 4-5 (Poole et al. 2019, section 2.3): each z chooses among the K v of the batch."""
    pairs = range(len(score))
    return mean(math.log(math.exp(score[i, i]) / mean(math.exp(score[i, j]) for j in pairs)) for i in pairs)


def infonce_column(score: Matrix) -> float:
    """The same with the sides exchanged: each v chooses its z."""
    pairs = range(len(score))
    return mean(math.log(math.exp(score[j, j]) / mean(math.exp(score[i, j]) for i in pairs)) for j in pairs)


def infonce_symmetric(score: Matrix) -> float:
    """Mean of both."""
    return (infonce_row(score) + infonce_column(score)) / 2


def nwj(score: Matrix) -> float:
    """Nguyen, Wainwright and Jordan 2010 (Poole et al. 2019, section 2.2): E_joint[f] − E_product[e^f] / e."""
    return over_joint(score) - over_product(score, math.exp) / math.e


def tuba(score: Matrix, log_a: Sequence[float]) -> float:
    """Poole et al. 2019, section 2.2, with a(v_j) = e^{log_a[j]}: 1 + E_joint[log(e^f / a)] − E_product[e^f / a]."""
    pairs = range(len(score))
    joint = mean(math.log(math.exp(score[j, j]) / math.exp(log_a[j])) for j in pairs)
    product = mean(math.exp(score[i, j]) / math.exp(log_a[j]) for j in pairs for i in pairs if i != j)
    return 1 + joint - product


def interpolated(score: Matrix, alpha: float, log_q: Sequence[float]) -> float:
    """Poole et al. 2019, eq. 14-15: TUBA with a = α m(v; z) + (1 − α) q(v), m the mean of e^f over K − 1 other z.

    The joint term of v_j leaves one of its negatives out of m, each in turn; the product term leaves its positive out.
    """
    pairs = range(len(score))

    def a(out: int, j: int) -> float:
        m = mean(math.exp(score[k, j]) for k in pairs if k != out)
        return alpha * m + (1 - alpha) * math.exp(log_q[j])

    joint = mean(math.log(math.exp(score[j, j]) / a(i, j)) for j in pairs for i in pairs if i != j)
    product = mean(math.exp(score[i, j]) / a(j, j) for j in pairs for i in pairs if i != j)
    return 1 + joint - product


def dv(score: Matrix) -> float:
    """Donsker and Varadhan 1983 (Belghazi et al. 2018, section 2): E_joint[f] − log E_product[e^f]."""
    return over_joint(score) - math.log(over_product(score, math.exp))


def js_objective(score: Matrix) -> float:
    """Hjelm et al. 2019, eq. 4: E_joint[−softplus(−f)] − E_product[softplus(f)]."""
    return over_joint(score, lambda f: -math.log1p(math.exp(-f))) - over_product(
        score, lambda f: math.log1p(math.exp(f))
    )


def js_value(score: Matrix) -> float:
    """Poole et al. 2019, section 2.6: the critic of JS approaches log r and NWJ's optimum is 1 + log r."""
    return nwj(score + 1)


def smile_value(score: Matrix, tau: float) -> float:
    """Song and Ermon 2020, section 5: only the partition function is clipped."""
    return over_joint(score) - math.log(over_product(score, lambda f: math.exp(min(max(f, -tau), tau))))


def moving_average(terms: Sequence[float], decay: float) -> float:
    """Exponential moving average of all terms with the bias correction of Adam (Kingma and Ba 2015, section 3)."""
    total = 0.0
    for term in terms:
        total = decay * total + (1 - decay) * term
    return total / (1 - decay ** len(terms))


def mine_objective(score: Matrix, average: float) -> float:
    """Belghazi et al. 2018, section 3.2: the partition function of DV's gradient is a moving average, a constant."""
    return over_joint(score) - over_product(score, math.exp) / average


def club(log_q: Matrix) -> float:
    """Cheng et al. 2020, section 3, without the positives in the second mean."""
    return over_joint(log_q) - over_product(log_q)


def leave_one_out(log_q: Matrix) -> float:
    """Poole et al. 2019, leave-one-out upper bound: p(v_j) is the mean of q(v_j | z_i) over the other z."""
    pairs = range(len(log_q))
    return mean(log_q[j, j] - math.log(mean(math.exp(log_q[i, j]) for i in pairs if i != j)) for j in pairs)


def gradient(function: Callable[[np.ndarray], float], point: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a function of one array, entry by entry."""
    slopes = np.zeros(point.shape)
    for place in np.ndindex(point.shape):
        shift = np.zeros(point.shape)
        shift[place] = step
        slopes[place] = (function(point + shift) - function(point - shift)) / (2 * step)
    return slopes


def gaussian_log_ratio(z: np.ndarray, v: np.ndarray, rho: float) -> float:
    """log p(z, v) / (p(z) p(v)) of unit normals with correlation rho in every dimension."""
    return sum(
        gaussian_log_density(b, rho * a, 1 - rho**2) - gaussian_log_density(b, 0, 1) for a, b in zip(z, v, strict=True)
    )


def gaussian_log_density(x: float, center: float, variance: float) -> float:
    """log N(x; center, variance)."""
    return -0.5 * math.log(2 * math.pi * variance) - (x - center) ** 2 / (2 * variance)
