"""Agreement of raters against a published example, scikit-learn, and what chance gives."""

import numpy as np
import pytest

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.raters import Level, cohen_kappa, krippendorff_alpha

NAN = float("nan")
# Krippendorff (2011), "Computing Krippendorff's alpha-reliability", section C: 4 observers, 12 units, values missing.
OBSERVED_RxN = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_the_published_example(level: Level, alpha: float) -> None:
    assert krippendorff_alpha(OBSERVED_RxN.T, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_ignores_the_order_of_raters_and_items_and_units_with_one_rating() -> None:
    draw = np.random.default_rng(0)
    rating_NxR = draw.integers(1, 6, (30, 3)).astype(float)
    shuffled = draw.permuted(rating_NxR, axis=1)[draw.permutation(30)]
    single = np.array([[5.0, NAN, NAN]])
    for level in ("nominal", "ordinal", "interval"):
        alpha = krippendorff_alpha(rating_NxR, level)
        assert krippendorff_alpha(shuffled, level) == pytest.approx(alpha)
        assert krippendorff_alpha(np.concatenate([rating_NxR, single]), level) == pytest.approx(alpha)


def test_agreement_is_1_where_raters_agree_and_near_0_by_chance() -> None:
    draw = np.random.default_rng(1)
    rating_N = draw.integers(1, 6, 4000)
    independent = draw.permutation(rating_N)
    assert cohen_kappa(rating_N, rating_N) == krippendorff_alpha(np.stack([rating_N, rating_N], 1)) == 1.0
    assert cohen_kappa(rating_N, independent) == pytest.approx(0, abs=0.03)
    assert krippendorff_alpha(np.stack([rating_N, independent], 1)) == pytest.approx(0, abs=0.04)


def test_kappa_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(2)
    for size, categories in ((5, 2), (50, 3), (400, 5)):
        ours, theirs = draw.integers(0, categories, (2, size))
        theirs = np.where(draw.random(size) < 0.5, ours, theirs)
        assert cohen_kappa(ours, theirs) == pytest.approx(metrics.cohen_kappa_score(ours, theirs), abs=1e-12)


def test_agreement_is_not_defined_for_one_category_or_no_pair() -> None:
    assert np.isnan(cohen_kappa(np.ones(4), np.ones(4))) and np.isnan(krippendorff_alpha(np.ones((4, 2))))
    for ratings in (np.array([[1.0, NAN], [NAN, 2.0]]), np.ones((4, 1)), np.ones(4)):
        with pytest.raises(UserError, match="needs an item with two ratings"):
            krippendorff_alpha(ratings)
    with pytest.raises(UserError, match="give two of each item"):
        cohen_kappa(np.ones(3), np.ones(4))
