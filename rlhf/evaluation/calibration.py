"""One number that makes scores into log-odds: the temperature (1706.04599), fitted on held-out comparisons.

On comparisons Platt's intercept has no meaning: which answer stands first is arbitrary, so that σ(Δ / T) is all there is to fit.
"""

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar

from rlhf.errors import UserError

LARGEST = 100.0


def fit_temperature(gap: Float[np.ndarray, " pairs"], preference: Float[np.ndarray, " pairs"] | float = 1.0) -> float:
    """T that makes σ(gap / T) likeliest, within 1/100 and 100.

    The loss is convex in 1 / T. Scores that order every pair rightly would have T = 0, scores that are no better than chance T = ∞;
    the bounds are what is given back then.

    Args:
        gap: score of the preferred answer minus that of the other.
        preference: probability that the preferred answer is the better one.

    Raises:
        UserError: no pairs, or a gap that is not finite.
    """
    gap = np.asarray(gap, np.float64)
    if gap.size == 0 or not np.isfinite(gap).all():
        raise UserError(
            "fit_temperature: there are no pairs, or not all scores are finite", fix="use more held-out pairs."
        )

    def loss(log_temperature: float) -> float:
        scaled = gap / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0.0, -scaled) + (1.0 - preference) * scaled))

    limit = np.log(LARGEST)
    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-9}).x))
