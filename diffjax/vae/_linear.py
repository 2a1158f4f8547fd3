"""The linear VAE, which is probabilistic PCA: optimum, divergences and posterior collapse in closed form.

    p(x | z) = N(W z + mu, sigma^2 I),   q(z | x) = N(V (x - mu), diag d),   data with covariance U diag(lambda) U'

At the optimum for a fixed sigma^2, with noise = beta sigma^2 and active latents those with lambda_i > noise:

    W = U_k (Lambda_k - noise I)_+^(1/2),   V = (W'W + noise I)^-1 W',   d_i = noise/(w_i^2 + noise)
    KL_i = max(0, 1/2 log(lambda_i/noise)):   latent i collapses exactly where lambda_i falls to beta sigma^2
    sigma^2 learned = sum of the discarded lambda/(n - beta a),  a active: their mean at beta = 1

At beta = 1 ELBO = log p(x), and every gradient vanishes. A rotated W has the same log p, but a lower ELBO: posteriors
with independent components pick the principal axes. An oracle, as those of `analytic`.

Source: Lucas et al. 2019 (Don't blame the ELBO!), sections 4-5, arXiv:1911.02469; Tipping & Bishop 1999.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import as_numbers, at_once, check, values_at_once
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Scalar
from diffjax.analytic._gaussian import check_symmetric
from diffjax.vae._gaussian import HALF_LOG_TAU


class LinearVAE(eqx.Module):
    """A decoder N(W z + mean, variance I) and an encoder N(V (x - mean), diag latent_variances), k latents of n
    features.

    Bounds are means over data with given mean and covariance, exactly: they are quadratic.

    Attributes:
      weight: W, [n, k].
      mean: mu, [n].
      variance: sigma^2, a scalar.
      encoder: V, [k, n].
      latent_variances: d, [k].

    Raises:
      ValueError: a variance is not positive (a singular scale), k is larger than n, or shapes do not fit.
    """

    weight: Float[Array, "n k"]
    mean: Float[Array, " n"]
    variance: Float[Array, ""]
    encoder: Float[Array, "k n"]
    latent_variances: Float[Array, " k"]

    @values_at_once
    def __check_init__(self):
        if jnp.ndim(self.weight) != 2 or 0 in jnp.shape(self.weight):
            raise ValueError(f"weight: a matrix [n, k] is needed, got shape {jnp.shape(self.weight)}")
        n, k = self.weight.shape
        check_latents(k, n)
        shapes = {"mean": (n,), "encoder": (k, n), "latent_variances": (k,)}
        for name, shape in shapes.items():
            if jnp.shape(getattr(self, name)) != shape:
                got = jnp.shape(getattr(self, name))
                raise ValueError(f"{name}: shape {shape} is needed for a weight of shape {(n, k)}, got {got}")
        for name in ("variance", "latent_variances"):
            check(getattr(self, name) > 0, f"{name}: must be positive, got {getattr(self, name)}")

    def rates(self, mean: Float[Array, " n"], covariance: Float[Array, "n n"]) -> Float[Array, " k"]:
        """E KL(q(z_i | x) || N(0, 1)) of each latent in nats, [k], over data of that mean [n] and covariance [n, n]."""
        d = self.latent_variances
        shift = self.encoder @ (mean - self.mean)
        second_moment = jnp.sum((self.encoder @ covariance) * self.encoder, axis=1) + shift**2
        return 0.5 * (d - 1 - jnp.log(d) + second_moment)

    def reconstruction(self, mean: Float[Array, " n"], covariance: Float[Array, "n n"]) -> Float[Array, ""]:
        """E[-log p(x | z)] in nats, a scalar, over data of that mean [n] and covariance [n, n]."""
        n = self.mean.shape[0]
        left = jnp.eye(n, dtype=self.weight.dtype) - self.weight @ self.encoder
        residual = left @ (mean - self.mean)
        square = jnp.sum((left @ covariance) * left) + residual @ residual
        square = square + jnp.sum(self.weight**2 @ self.latent_variances)
        return n * (HALF_LOG_TAU + 0.5 * jnp.log(self.variance)) + 0.5 * square / self.variance

    @checked_numbers
    def elbo(
        self, mean: Float[Array, " n"], covariance: Float[Array, "n n"], *, beta: Scalar = 1.0
    ) -> Float[Array, ""]:
        """The mean ELBO in nats, a scalar, over data of that mean [n] and covariance [n, n]; rates weighted by beta."""
        return -self.reconstruction(mean, covariance) - beta * jnp.sum(self.rates(mean, covariance))

    def log_likelihood(self, mean: Float[Array, " n"], covariance: Float[Array, "n n"]) -> Float[Array, ""]:
        """The mean of log p(x) in nats, a scalar, over data of that mean [n] and covariance [n, n]."""
        n = self.mean.shape[0]
        model = self.weight @ self.weight.T + self.variance * jnp.eye(n, dtype=self.weight.dtype)
        shift = mean - self.mean
        second_moment = covariance + jnp.outer(shift, shift)
        log_determinant = jnp.linalg.slogdet(model)[1]
        return -n * HALF_LOG_TAU - 0.5 * (log_determinant + jnp.trace(jnp.linalg.solve(model, second_moment)))


@checked_numbers
def best_encoder(
    weight: Float[Array, "n k"], variance: Scalar, *, beta: Scalar = 1.0
) -> tuple[Float[Array, "k n"], Float[Array, " k"]]:
    """(V [k, n], d [k]) of the encoder that maximises the ELBO for a decoder's W [n, k] and scalar sigma^2.

        V = M^-1 W',   d = beta sigma^2/diag(M),   M = W'W + beta sigma^2 I

    >>> import jax.numpy as jnp
    >>> from diffjax import vae
    >>> encoder, variances = vae.best_encoder(jnp.array([[2.0], [0.0]]), 1.0)
    >>> print(encoder.round(1), variances.round(1))
    [[0.4 0. ]] [0.2]

    Args:
      weight: W, any, not only one with orthogonal columns.
      variance: sigma^2, positive.
      beta: weight of the rates, positive.

    Raises:
      ValueError: beta times the variance is not positive.
    """
    with at_once(variance, beta):
        noise = as_scalar("variance", variance) * as_scalar("beta", beta)
        check(noise > 0, f"variance: beta times the variance must be positive, got {noise}")
    m = weight.T @ weight + noise * jnp.eye(weight.shape[1], dtype=weight.dtype)
    return jnp.linalg.solve(m, weight.T), noise / jnp.diag(m)


@checked_numbers
def optimal_linear_vae(
    mean: Float[Array, " n"],
    covariance: Float[Array, "n n"],
    latents: int,
    *,
    variance: Scalar | None = None,
    beta: Scalar = 1.0,
) -> LinearVAE:
    """The linear VAE that maximises the beta-ELBO over data of a mean [n] and covariance [n, n].

    >>> import jax.numpy as jnp
    >>> model = optimal_linear_vae(jnp.zeros(3), jnp.diag(jnp.array([4.0, 2.0, 0.5])), 2, variance=1.0)
    >>> [round(float(w), 3) for w in (model.weight**2).sum(0)]
    [3.0, 1.0]
    >>> [round(float(kl), 3) for kl in model.rates(jnp.zeros(3), jnp.diag(jnp.array([4.0, 2.0, 0.5])))]
    [0.693, 0.347]

    Args:
      mean: of the data.
      covariance: of the data, symmetric, not negative.
      latents: k, at least 1 and at most n.
      variance: sigma^2 of the decoder; None: the one that maximises as well, for which k < n is needed.
      beta: weight of the rates, positive.

    Returns:
      The model, its latents in order of falling eigenvalues; collapsed ones have a column of zeros in W.

    Raises:
      ValueError: latents are fewer than 1 or more than the data have features, the covariance has a negative
        eigenvalue, or a scale is singular.

    Source: Lucas et al. 2019, section 4.2 and appendix A; Tipping & Bishop 1999, appendix A.
    """
    mean, covariance = as_numbers("mean", mean), as_numbers("covariance", covariance)
    n = mean.size
    if mean.ndim != 1 or covariance.shape != (n, n):
        raise ValueError(f"covariance: shape {(n, n)} is needed for {n} features, got {covariance.shape}")
    check_symmetric(covariance, "covariance")
    check_latents(latents, n)
    with at_once(beta):
        beta = as_scalar("beta", beta)
        check(beta > 0, f"beta: must be positive, got {beta}")
    eigenvalues, vectors = jnp.linalg.eigh(covariance)
    least, rounding = eigenvalues[0], 1e-5 * jnp.max(jnp.abs(eigenvalues))  # of moments in float32
    check(least >= -rounding, f"covariance: must have no negative eigenvalue, got {least}")
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    if variance is None:
        if latents == n:
            raise ValueError(f"latents: fewer than the {n} features are needed to learn a variance, got {latents}")
        variance = _best_variance(eigenvalues, latents, beta)
    with at_once(variance):
        variance = as_scalar("variance", variance).astype(covariance.dtype)
        check(variance > 0, f"variance: must be positive, got {variance}")
    excess = jnp.maximum(eigenvalues[:latents] - beta * variance, 0)
    weight = vectors[:, :latents] * jnp.sqrt(excess)
    encoder, latent_variances = best_encoder(weight, variance, beta=beta)
    return LinearVAE(weight, mean, variance, encoder, latent_variances)


@checked_numbers
def rates_at_optimum(eigenvalues: Float[Array, " k"], variance: Scalar, *, beta: Scalar = 1.0) -> Float[Array, " k"]:
    """max(0, 1/2 log(lambda_i/(beta sigma^2))) in nats, [k]: the rate of each latent of the optimal linear VAE.

    A latent is collapsed, its rate 0, exactly where its eigenvalue is not above beta sigma^2.

    >>> import jax.numpy as jnp
    >>> from diffjax import vae
    >>> print(vae.rates_at_optimum(jnp.array([4.0, 0.5]), 1.0).round(3))  # log(4)/2, and a collapsed latent
    [0.693 0.   ]

    Args:
      eigenvalues: of the data's covariance, [k].
      variance: sigma^2, a positive scalar.
      beta: weight of the rates, positive.

    Raises:
      ValueError: beta times the variance is not positive.
    """
    with at_once(variance, beta):
        noise = as_scalar("variance", variance) * as_scalar("beta", beta)
        check(noise > 0, f"variance: beta times the variance must be positive, got {noise}")
    return 0.5 * jnp.log(jnp.maximum(eigenvalues / noise, 1.0))


def check_latents(latents: int, n: int) -> None:
    """Raises `ValueError` where a number of latents is not 1 .. n, that of the data's features."""
    if not 1 <= latents <= n:
        raise ValueError(f"latents: 1 to {n} are needed, no more than the data have features, got {latents}")


def _best_variance(eigenvalues, latents, beta):
    """sigma^2 of the maximum, the least of sum_{i > a} lambda_i/(n - beta a) over a = 0 .. k with n > beta a.

    Where it is stationary, n sigma^2 = sum_{i <= k} min(lambda_i, beta sigma^2) + sum_{i > k} lambda_i. The difference
    of the two sides is the largest over a of (n - beta a) sigma^2 - sum_{i > a} lambda_i, and negative at 0: it has one
    root, where the first of these lines rises above 0.
    """
    n = eigenvalues.shape[0]
    discarded = jnp.cumsum(eigenvalues[::-1])[::-1][: latents + 1]
    smallest = n * jnp.finfo(eigenvalues.dtype).eps * eigenvalues[0]
    reason = f"covariance: {latents} latents hold all of it, so that a variance of 0, which is singular, would be best"
    check(discarded[-1] > smallest, f"{reason}; take fewer latents, or give a variance")
    freedom = n - beta * jnp.arange(latents + 1).astype(eigenvalues.dtype)
    return jnp.min(jnp.where(freedom > 0, discarded / jnp.where(freedom > 0, freedom, 1), jnp.inf))
