"""What becomes of a distribution when one of its tokens is ruled out, as the end token is before a minimum length."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


def exclude_token(
    log_probs: Float[Array, " *shape"], entropy: Float[Array, " *shape"], excluded_log_probs: Float[Array, " *shape"]
) -> tuple[Float32[Array, " *shape"], Float32[Array, " *shape"]]:
    """Renormalises over the tokens that are left: log q(t) = log p(t) − log(1 − p(e)).

    Args:
        log_probs: log p(t) of a token t ≠ e, in nats.
        entropy: of p.
        excluded_log_probs: log p(e) of the token that is ruled out.

    Returns:
        log q(t), and the entropy of q, which is (H(p) + p(e) log p(e)) / (1 − p(e)) + log(1 − p(e)).
    """
    left = jnp.maximum(-jnp.expm1(excluded_log_probs.astype(jnp.float32)), jnp.finfo(jnp.float32).tiny)
    excluded = jnp.exp(excluded_log_probs) * excluded_log_probs
    return log_probs - jnp.log(left), (entropy + excluded) / left + jnp.log(left)
