"""What the best of n samples is worth and how far it is from the sampled policy, without sampling anew for each n."""

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import gammaln

from rlhf.errors import UserError


def best_of_n_estimate(
    proxy: Shaped[np.ndarray, "*prompts samples"], gold: Shaped[np.ndarray, "*prompts samples"], n: int
) -> Float[np.ndarray, " *prompts"]:
    """Expected gold score of the best of n by proxy score, estimated from N ≥ n samples of each prompt.

    The mean over all C(N, n) subsets of the gold score of each subset's winner, in closed form: unbiased, whereas
    drawing subsets with replacement is not (2112.09332; 2310.02743, appendix B). Among equal proxy scores
    every sample is as likely to win.

    Args:
        proxy: what the best is chosen by.
        gold: what it is judged by; `proxy` again for the proxy's own expected maximum.
        n: samples to choose from.

    Returns:
        One estimate a prompt; average them, or take their bootstrap interval.

    Raises:
        UserError: n is not between 1 and N, shapes differ, or proxy scores are NaN.
    """
    proxy, gold = np.asarray(proxy, np.float64), np.asarray(gold, np.float64)
    if proxy.shape != gold.shape:
        raise UserError(
            f"best_of_n: proxy has shape {proxy.shape}, gold {gold.shape}", fix="score the same samples by both."
        )
    samples = proxy.shape[-1]
    if not 1 <= n <= samples:
        raise UserError(f"best_of_n: n is {n} with {samples} samples a prompt", fix=f"choose n from 1 to {samples}.")
    if np.isnan(proxy).any():
        raise UserError(
            "best_of_n: some proxy scores are NaN", fix="find the samples that the reward model cannot score."
        )
    gold, below, not_above = _ascending(proxy, gold)
    winning = _share_of_subsets_within(np.arange(samples + 1), samples, n)
    probability = (winning[not_above] - winning[below]) / (not_above - below)
    return np.sum(probability * gold, axis=-1)


def best_of_n_variance(
    proxy: Shaped[np.ndarray, "*prompts samples"], gold: Shaped[np.ndarray, "*prompts samples"], n: int
) -> Float[np.ndarray, " *prompts"]:
    """Variance of each of `best_of_n_estimate`'s values, by the jackknife over its N samples: what more samples would mend.

    (N − 1)/N · Σ_i (θ_i − θ̄)², where θ_i is the estimate without sample i. For n = 1 that is s²/N, the variance of a mean; beyond,
    the jackknife errs upwards on average (Efron and Stein, 1981), and most where n is near N.

    Args:
        proxy: what the best is chosen by.
        gold: what it is judged by.
        n: samples to choose from.

    Returns:
        One variance a prompt; NaN for n = N, where no sample can be spared.
    """
    proxy, gold = np.asarray(proxy, np.float64), np.asarray(gold, np.float64)
    samples = proxy.shape[-1]
    if n >= samples:
        return np.full(proxy.shape[:-1], np.nan)
    gold, below, not_above = _ascending(proxy, gold)
    # The share of subsets of the other N − 1 samples that each of their ranks wins.
    winning = _share_of_subsets_within(np.arange(samples), samples - 1, n)
    won = np.append(np.diff(winning), 0.0)
    shared = _mean_between(gold, below, not_above)
    rank = np.arange(samples)
    # Whoever ranks above the sample that is left out moves down one rank.
    lower = _sums_before(won[rank] * shared)
    upper = _sums_before(won[rank - 1] * shared)
    others = not_above - below - 1
    of_tied = (shared * (others + 1) - gold) / np.maximum(others, 1)
    tied = np.where(others > 0, (winning[not_above - 1] - winning[below]) * of_tied, 0.0)
    without = (
        np.take_along_axis(lower, below, axis=-1)
        + tied
        + upper[..., -1:]
        - np.take_along_axis(upper, not_above, axis=-1)
    )
    return (samples - 1) * np.var(without, axis=-1)


def best_of_n_kl_bound(n: Shaped[np.ndarray, " *shape"] | int) -> Float[np.ndarray, " *shape"]:
    """log n − (n − 1)/n: upper bound on KL(best-of-n ‖ policy) in nats (2401.01879).

    It is nearly reached where no single response is likely.

    Args:
        n: samples to choose from, one number or several.
    """
    n = np.asarray(n, np.float64)
    return np.log(n) - (n - 1.0) / n


def best_of_n_kl_estimate(winner_log_probs: Float[np.ndarray, " *winners"], n: int) -> Float[np.ndarray, " *winners"]:
    """Closer estimate of KL(best-of-n ‖ policy), from how likely each winner was under the policy (2401.01879).

    With ε the winner's probability and q = (1 − ε)^n:
    q · (log n + (n − 1) log(1 − ε) − (n − 1)/n) + (1 − q) · log((1 − q)/ε). It is the bound for ε → 0 and 0 for ε = 1.

    Args:
        winner_log_probs: log-probability of each winning response as a whole.
        n: samples it was chosen from.

    Returns:
        One value a winner in nats; the estimate is their mean over winners and prompts.
    """
    log_probs = np.asarray(winner_log_probs, np.float64)
    # Below the smallest probability a float can hold, the formula has reached its limit.
    probability = np.clip(np.exp(log_probs), 1e-300, 1.0)
    certain = probability == 1.0
    log_other = np.log1p(-np.where(certain, 0.5, probability))
    never = np.exp(n * log_other)
    rest = -np.expm1(n * log_other)
    estimate = never * (best_of_n_kl_bound(n) + (n - 1) * log_other) + rest * np.log(rest / probability)
    return np.where(certain, 0.0, estimate)


def _ascending(
    proxy: Float[np.ndarray, "*prompts samples"], gold: Float[np.ndarray, "*prompts samples"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gold scores in ascending order of proxy scores, and each sample's `_tie_ranges`."""
    order = np.argsort(proxy, axis=-1)
    return np.take_along_axis(gold, order, axis=-1), *_tie_ranges(np.take_along_axis(proxy, order, axis=-1))


def _sums_before(values: Float[np.ndarray, "*prompts samples"]) -> Float[np.ndarray, "*prompts one_more"]:
    """Sums of the first 0, 1, … N values."""
    return np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)


def _mean_between(values: np.ndarray, start: np.ndarray, stop: np.ndarray) -> Float[np.ndarray, "*prompts samples"]:
    """Mean of values[start:stop] for each sample."""
    sums = _sums_before(values)
    total = np.take_along_axis(sums, stop, axis=-1) - np.take_along_axis(sums, start, axis=-1)
    return total / (stop - start)


def _tie_ranges(ascending: Float[np.ndarray, "*prompts samples"]) -> tuple[np.ndarray, np.ndarray]:
    """For each sample, how many score strictly less and how many score no more."""
    samples = ascending.shape[-1]
    starts = np.ones(ascending.shape, bool)
    starts[..., 1:] = ascending[..., 1:] != ascending[..., :-1]
    ends = np.ones(ascending.shape, bool)
    ends[..., :-1] = starts[..., 1:]
    position = np.arange(samples)
    below = np.maximum.accumulate(np.where(starts, position, 0), axis=-1)
    last = np.minimum.accumulate(np.where(ends, position, samples)[..., ::-1], axis=-1)[..., ::-1]
    return below, last + 1


def _share_of_subsets_within(size: np.ndarray, samples: int, n: int) -> Float[np.ndarray, " sizes"]:
    """C(size, n) / C(samples, n), in logarithms: binomials of hundreds overflow."""
    fits = np.maximum(size, n)
    log_share = gammaln(fits + 1) - gammaln(fits - n + 1) - gammaln(samples + 1) + gammaln(samples - n + 1)
    return np.where(size >= n, np.exp(log_share), 0.0)
