"""How much reward a distance from the initial policy buys, and where it turns: the two forms of 2210.10760 (Gao et al.).

With d = √KL(policy ‖ initial policy) and the reward counted from that of the initial policy:

    best-of-n                R(d) = d (α − β d)         highest at d = α / (2β)
    reinforcement learning   R(d) = d (α − β log d)     highest at d = exp(α/β − 1)

Both are linear in α and β, so least squares gives them in closed form. The second is not meant for d near 0.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from rlhf.errors import UserError

Form = Literal["best_of_n", "rl"]
FEWEST_POINTS = 3


@dataclass(frozen=True)
class FrontierFit:
    """A fitted form.

    Attributes:
        form: "best_of_n" or "rl".
        alpha: reward per √nat at first.
        beta: how fast that falls off.
        alpha_error: standard error of alpha, from the scatter of the points around the curve.
        beta_error: likewise of beta.
        residual: root mean square distance of the points from the curve, on the scale of the reward.
        points: how many were fitted.
        largest_kl: of the points, in nats; beyond it the curve is a guess.
    """

    form: Form
    alpha: float
    beta: float
    alpha_error: float
    beta_error: float
    residual: float
    points: int
    largest_kl: float

    def gain(self, kl: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """Reward above the initial policy's at each KL (nats)."""
        return _columns(self.form, np.asarray(kl, np.float64)) @ np.array([self.alpha, self.beta])

    @property
    def peak_kl(self) -> float | None:
        """KL in nats at which the curve is highest; None if it rises for ever (β ≤ 0) or never (α ≤ 0, best-of-n)."""
        if self.beta <= 0:
            return None
        if self.form == "rl":
            # Past e^700 a float overflows; nobody will go there.
            exponent = 2 * (self.alpha / self.beta - 1)
            return float(np.exp(exponent)) if exponent < 700 else None
        return (self.alpha / (2 * self.beta)) ** 2 if self.alpha > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """All of it for JSON, with where the curve peaks, and whether that was observed."""
        peak = self.peak_kl
        return asdict(self) | {
            "peak_kl": peak,
            "peak_gain": None if peak is None else float(self.gain(np.array([peak]))[0]),
            "peak_is_beyond_the_points": peak is not None and peak > self.largest_kl,
        }


def fit_frontier(
    form: Form,
    kl: Float[np.ndarray, " points"],
    gain: Float[np.ndarray, " points"],
    error: Float[np.ndarray, " points"] | None = None,
) -> FrontierFit | None:
    """Fits a form of 2210.10760 by (weighted) least squares.

    Points of one run share their prompts, and those of best-of-n even their samples, so that they scatter together: the
    standard errors say how well the form fits, not how the curve would move on other prompts.

    Args:
        form: "best_of_n" or "rl".
        kl: distance from the initial policy in nats; points at 0 or below (noise) carry nothing and are left out.
        gain: reward minus that of the initial policy.
        error: standard error of each gain, which then weighs 1 / error²; None for equal weights.

    Returns:
        The fit; None with fewer than three points to fit, or all at one KL.

    Raises:
        UserError: unequal lengths, or a gain that is not finite.
    """
    kl, gain = np.asarray(kl, np.float64), np.asarray(gain, np.float64)
    if kl.shape != gain.shape or not np.isfinite(gain).all():
        raise UserError(
            f"fit_frontier: {kl.shape} distances for {gain.shape} rewards, all of which must be finite",
            fix="give one finite reward for each distance.",
        )
    used = kl > 0
    if len(np.unique(kl[used])) < FEWEST_POINTS:
        return None
    columns, wanted = _columns(form, kl[used]), gain[used]
    weight = np.ones(len(wanted)) if error is None else 1.0 / np.maximum(np.asarray(error)[used], 1e-12)
    weight = weight / np.sqrt(np.mean(np.square(weight)))
    solution, *_ = np.linalg.lstsq(columns * weight[:, None], wanted * weight, rcond=None)
    distance = wanted - columns @ solution
    spread = np.sum(np.square(weight * distance)) / (len(wanted) - 2)
    covariance = spread * np.linalg.inv((columns * weight[:, None]).T @ (columns * weight[:, None]))
    alpha_error, beta_error = np.sqrt(np.diag(covariance))
    return FrontierFit(
        form=form,
        alpha=float(solution[0]),
        beta=float(solution[1]),
        alpha_error=float(alpha_error),
        beta_error=float(beta_error),
        residual=float(np.sqrt(np.mean(np.square(distance)))),
        points=len(wanted),
        largest_kl=float(kl[used].max()),
    )


def _columns(form: Form, kl: Float[np.ndarray, " points"]) -> Float[np.ndarray, "points 2"]:
    """What α and β are multiplied by; both are 0 at KL 0."""
    distance = np.sqrt(np.maximum(kl, 0.0))
    if form == "best_of_n":
        return np.stack([distance, -np.square(distance)], axis=-1)
    log = np.log(np.where(distance > 0, distance, 1.0))
    return np.stack([distance, -distance * log], axis=-1)
