"""The fits against SciPy's general least squares, and their peaks against a search."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from rlhf.errors import UserError
from rlhf.evaluation.over_optimisation import fit_frontier

FORMS = {
    "best_of_n": lambda kl, alpha, beta: np.sqrt(kl) * (alpha - beta * np.sqrt(kl)),
    "rl": lambda kl, alpha, beta: np.sqrt(kl) * (alpha - beta * np.log(np.sqrt(kl))),
}
KL = np.array([0.2, 0.5, 1.0, 2.5, 4.0, 9.0, 16.0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighted", [False, True])
def test_coefficients_and_standard_errors_are_those_of_scipy(form, weighted):
    random = np.random.default_rng(0)
    gain = FORMS[form](KL, 1.3, 0.4) + random.normal(scale=0.05, size=len(KL))
    error = random.uniform(0.02, 0.2, len(KL)) if weighted else None
    expected, covariance = curve_fit(FORMS[form], KL, gain, p0=(1, 0.1), sigma=error, absolute_sigma=False)
    # KL 0 and an estimate below 0 carry nothing.
    given = (
        np.append(KL, [0.0, -0.1]),
        np.append(gain, [0.0, 0.3]),
        None if error is None else np.append(error, [0.1, 0.1]),
    )
    fit = fit_frontier(form, *given)
    np.testing.assert_allclose((fit.alpha, fit.beta), expected, rtol=1e-5)
    np.testing.assert_allclose((fit.alpha_error, fit.beta_error), np.sqrt(np.diag(covariance)), rtol=1e-4)
    assert (fit.points, fit.largest_kl) == (7, 16.0)


@pytest.mark.parametrize(("form", "peak"), [("best_of_n", (1.3 / 0.8) ** 2), ("rl", np.exp(2 * (1.3 / 0.4 - 1)))])
def test_peaks_are_where_a_search_finds_them(form, peak):
    fit = fit_frontier(form, KL, FORMS[form](KL, 1.3, 0.4))
    assert fit.residual < 1e-12
    assert fit.peak_kl == pytest.approx(peak, rel=1e-6)
    around = peak * np.linspace(0.5, 1.5, 2001)
    assert around[np.argmax(fit.gain(around))] == pytest.approx(peak, rel=1e-3)
    entry = fit.as_dict()
    assert entry["peak_gain"] == pytest.approx(FORMS[form](peak, 1.3, 0.4))
    assert entry["peak_is_beyond_the_points"] == (peak > 16)


def test_a_curve_that_does_not_fall_off_has_no_peak():
    assert fit_frontier("best_of_n", KL, FORMS["best_of_n"](KL, 1.0, -0.1)).peak_kl is None
    assert fit_frontier("best_of_n", KL, FORMS["best_of_n"](KL, -1.0, 0.1)).peak_kl is None


def test_too_few_points_are_not_fitted_and_bad_ones_refused():
    assert fit_frontier("rl", np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 1.5])) is None
    assert fit_frontier("rl", np.array([1.0, 1.0, 2.0, 2.0]), np.ones(4)) is None
    with pytest.raises(UserError, match="finite"):
        fit_frontier("rl", KL, KL * np.nan)
