"""Hierarchical VAEs: top-down inference by a network, the two-level linear oracle, and diffusion as an instance.

    ELBO = E_q[log p(x | z)] - sum_l E_q KL(q(z_l | z_>l, x) || p(z_l | z_>l))

HierarchicalVAE    a network of top-down blocks, q_l = N(m_p + dm, (s_p ds)^2) relative to the prior
LinearHierarchy    z2 -> z1 -> x linear and Gaussian: rates are mutual informations, in closed form
DiffusionChain     z_K = x at t_max, ..., z_1 = x at t_min; q is the forward process, fixed; p uses x0_hat for x0

In a linear hierarchy at the exact posterior

    rate of z2 = I(x; z2),   rate of z1 = I(x; z1 | z2),   sum = I(x; z1)

Data determine p(x) alone, and with it the sum: how the rate is split between levels is the model's choice, and a
powerful lower level leaves the upper one nothing.

Source: Sonderby et al. 2016 (Ladder VAE); Child 2021 (VDVAE), section 3; Vahdat & Kautz 2020 (NVAE), section 3.2;
DDPM as a hierarchical VAE: Ho et al. 2020, eq. 5; Kingma et al. 2021, section 3.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from diffjax._arrays import (
    answered,
    as_numbers,
    as_samples,
    as_value,
    at_once,
    check,
    check_key,
    check_shape,
    check_times,
    is_concrete,
    part_of,
    time_dtype,
)
from diffjax._numbers import as_scalar, checked_numbers
from diffjax._typing import Cond, Key, Params, Sample, Scalar
from diffjax.analytic._gaussian import check_symmetric
from diffjax.losses import gaussian_decoder, snr_differences
from diffjax.networks import TopDown, draw_parameters
from diffjax.parameterisation import apply_network, recover
from diffjax.parameterisation._diffusion import Diffusion, check_diffusion
from diffjax.process._gaussian import posterior_mean_std
from diffjax.vae._gaussian import HALF_LOG_TAU, DiagonalGaussian, as_gaussian, residual_gaussian
from diffjax.vae._likelihoods import AbstractLikelihood, Output
from diffjax.vae._model import AbstractVAE, Draw


class HierarchicalVAE(AbstractVAE):
    """A VAE with any number of levels, whose inference and generation are one top-down pass of a network.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import networks, vae
    >>> network = networks.TopDown((8, 8, 1), channels=(8, 8), blocks=(1, 2), latents=2, outputs=2)
    >>> model = HierarchicalVAE(network, vae.DiscretisedLogistic())
    >>> x0 = jnp.ones((2, 8, 8, 1))
    >>> params = model.init(jax.random.key(0), x0)
    >>> vae.infer(model, params, jax.random.key(1), x0).rates.shape
    (2, 3)

    Attributes:
      network: the blocks; its `outputs` must be those of the likelihood.
      likelihood: p(x0 | y).

    Raises:
      ValueError: the network is of another kind, or gives another number of outputs than the likelihood needs.
    """

    network: TopDown = eqx.field(static=True)
    likelihood: AbstractLikelihood

    def __check_init__(self):
        if not isinstance(self.network, TopDown):
            raise ValueError(f"network: networks.TopDown is needed, got {type(self.network).__name__}")
        outputs, name = self.likelihood.outputs, type(self.likelihood).__name__
        if outputs != self.network.outputs:
            raise ValueError(f"network: {name} needs outputs={outputs}, got {self.network.outputs}")

    def init(self, key: Key, x0: Sample, cond: Cond = None) -> Params:
        check_key(key)
        x0 = as_samples("x0", x0)
        mean = lambda prior, change: jnp.split(prior, 2, axis=-1)[0]
        init = lambda key, x0, cond: self.network.init(key, x0, cond, draw=mean)["params"]
        network = draw_parameters(jax.random.fold_in(key, 0), init, x0, cond)
        y = jnp.zeros((x0.shape[0], *self.network.shape[:2], self.network.outputs * self.network.shape[2]))
        return {"network": network, "likelihood": self.likelihood.init(jax.random.fold_in(key, 1), y, x0)}

    @checked_numbers
    def top_down(
        self, params: Params, draw: Draw, n: int, x0: Sample | None, cond: Cond = None, *, key: Key | None = None
    ) -> Array:
        def level(prior, change):
            p = as_gaussian(jnp.broadcast_to(prior, (n, *prior.shape[1:])))
            return draw(p, None if change is None else residual_gaussian(p, change), p.mean.shape)

        rngs = {} if key is None else {"dropout": key}
        options = {"draw": level, "deterministic": key is None, "rngs": rngs}
        return self.network.apply({"params": part_of(params, "network", "VAE")}, x0, cond, **options)  # pyright: ignore[reportReturnType]


class ReadOut(AbstractLikelihood):
    """p(x0 | x at t_min) of a diffusion model, by a decoder of `losses`, for y = x at t_min over alpha.

    Attributes:
      reconstruction: `(x0, eps, std) -> -log p(x0 | x0 + std eps) [b]`, such as `losses.gaussian_decoder` or
        `losses.LevelDecoder(256)`.
      std: sigma/alpha at t_min, a scalar.
    """

    outputs: ClassVar[int] = 1
    reconstruction: Callable[..., Any]
    std: Float[Array, ""]

    def init(self, key: Key, y: Output, x0: Sample) -> Params:
        return {}

    def log_prob(self, params: Params, y: Output, x0: Sample, *, key: Key | None = None) -> Float[Array, " b"]:
        x0 = as_samples("x0", x0)
        y = as_samples("y", y, x0.shape)
        std = jnp.asarray(self.std).astype(time_dtype(x0))
        nats = self.reconstruction(x0, ((y - x0) / std).astype(x0.dtype), std)
        return -answered("reconstruction", nats, x0.shape[:1])

    def mean(self, params: Params, y: Output) -> Sample:
        return as_samples("y", y)

    def sample(self, params: Params, keys: Shaped[Array, "b *k"], y: Output) -> Sample:
        """y itself: the chain has been drawn down to t_min, where std is small."""
        return as_samples("y", y)


@checked_numbers
class DiffusionChain(AbstractVAE):
    """A diffusion model on a grid as a hierarchical VAE with K levels, all of the size of the data.

        z_K   q = N(alpha x0, sigma^2) at t_max,     p = N(0, sigma^2)
        z_k   q = q(xs | xt, x0),                    p = the same of x0_hat(xt, t)

    Its `negative_elbo` is `losses.negative_discrete_elbo`, level by level: the top's rate is the prior term, each
    other rate a step of the diffusion term, minus log likelihood the reconstruction. All steps are evaluated one after
    the other, so this is for looking and testing: for many steps `likelihood.evaluate_discrete_elbo` draws some.

    Attributes:
      diffusion: network, process and parameterisation; params are `{"network": ..., "likelihood": {}}`.
      ts: a descending grid of K times, t_max first, inside `process.interval()`, one a level.
      shape: [*d] of one sample.
      likelihood: `ReadOut` by the decoder that is given (default `losses.gaussian_decoder`).

    Raises:
      ValueError: ts does not descend, or ends where logsnr is infinite.

    Source: Ho et al. 2020, eq. 5; Kingma et al. 2021 (Variational Diffusion Models), eqs. 11-14.
    """

    diffusion: Diffusion
    ts: Float[Array, " points"]
    shape: tuple[int, ...] = eqx.field(static=True)
    likelihood: AbstractLikelihood

    def __init__(
        self,
        diffusion: Diffusion,
        ts: Any,
        shape: tuple[int, ...],
        reconstruction: Callable[..., Any] = gaussian_decoder,
    ):
        check_diffusion(diffusion)
        check_shape(shape)
        if is_concrete(ts):
            check_times(np.asarray(ts, np.float64), "descend")
        self.diffusion, self.ts, self.shape = diffusion, as_value(ts), tuple(shape)
        snr_differences(diffusion.process, self.ts)  # refuses an infinite logsnr at an end
        last = self.ts[-1]
        self.likelihood = ReadOut(reconstruction, jnp.asarray(diffusion.process.sigma(last) / self._alpha(last)))

    def init(self, key: Key, x0: Sample, cond: Cond = None) -> Params:
        check_key(key)
        x0 = as_samples("x0", x0)
        return {"network": self.diffusion.network.init(key, x0, jnp.zeros(x0.shape[0]), cond), "likelihood": {}}

    @checked_numbers
    def top_down(
        self, params: Params, draw: Draw, n: int, x0: Sample | None, cond: Cond = None, *, key: Key | None = None
    ) -> Array:
        process, parameterisation, shape = self.diffusion.process, self.diffusion.parameterisation, (n, *self.shape)
        zero = jnp.zeros(shape, self.ts.dtype if x0 is None else x0.dtype)
        ts, network = self.ts.astype(time_dtype(zero)), part_of(params, "network", "VAE")

        def gaussian(mean, std):
            return DiagonalGaussian(mean.astype(zero.dtype), jnp.full_like(zero, jnp.log(std)))

        sigma = process.sigma(ts[0])
        top = None if x0 is None else gaussian(self._alpha(ts[0]) * as_samples("x0", x0, shape), sigma)
        xt = draw(gaussian(zero, sigma), top, shape)
        for k in range(ts.shape[0] - 1):
            t, s = ts[k], ts[k + 1]
            own = None if key is None else jax.random.fold_in(key, k)
            y = answered("network", apply_network(self.diffusion, network, xt, t, cond, key=own), shape)
            x0_hat = recover(parameterisation, process, y, xt, t)[0]
            prior = gaussian(*posterior_mean_std(process, x0_hat, xt, s, t))
            posterior = None if x0 is None else gaussian(*posterior_mean_std(process, x0, xt, s, t))
            xt = draw(prior, posterior, shape)
        return (xt / self._alpha(ts[-1])).astype(zero.dtype)

    def _alpha(self, t):
        return self.diffusion.process.alpha(t)


class LinearPosterior(eqx.Module):
    """q(z2 | x) = N(K x, L L'), q(z1 | z2, x) = N(F x + G z2, M M'): Gaussians of a `LinearHierarchy`, correlated.

    Attributes:
      top_gain: K, [k2, n].
      top_scale: L, [k2, k2], any square root of the covariance.
      gain: F, [k1, n].
      top_weight: G, [k1, k2].
      scale: M, [k1, k1].
    """

    top_gain: Float[Array, "k2 n"]
    top_scale: Float[Array, "k2 k2"]
    gain: Float[Array, "k1 n"]
    top_weight: Float[Array, "k1 k2"]
    scale: Float[Array, "k1 k1"]


@checked_numbers
class LinearHierarchy(eqx.Module):
    """z2 ~ N(0, I), z1 ~ N(A z2, S), x ~ N(W z1, variance I): a two-level model with everything in closed form.

    >>> import jax.numpy as jnp
    >>> model = LinearHierarchy(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1)), 1.0)
    >>> [round(float(nats), 4) for nats in model.information()]  # of z2: 1/2 log(3/2), of z1 given z2: 1/2 log 2
    [0.2027, 0.3466]

    Attributes:
      top_weight: A, [k1, k2].
      covariance: S of z1 given z2, [k1, k1], positive definite.
      weight: W, [n, k1].
      variance: of x given z1, a positive scalar.

    Raises:
      ValueError: a level has no latent, a scale is singular, or shapes do not fit.
    """

    top_weight: Float[Array, "k1 k2"]
    covariance: Float[Array, "k1 k1"]
    weight: Float[Array, "n k1"]
    variance: Float[Array, ""]

    def __init__(self, top_weight: Any, covariance: Any, weight: Any, variance: Scalar):
        matrices = {"top_weight": top_weight, "covariance": covariance, "weight": weight}
        for name, value in matrices.items():
            matrices[name] = as_numbers(name, value)
            if matrices[name].ndim != 2:
                raise ValueError(f"{name}: a matrix is needed, got shape {matrices[name].shape}")
        self.top_weight, self.covariance, self.weight = matrices.values()
        k1, k2 = self.top_weight.shape
        if 0 in (k1, k2):
            raise ValueError(f"top_weight: at least one latent a level is needed, [k1, k2], got shape {(k1, k2)}")
        if self.covariance.shape != (k1, k1) or self.weight.shape[1] != k1:
            got = f"{self.covariance.shape} and {self.weight.shape}"
            raise ValueError(f"covariance, weight: shapes {(k1, k1)} and (n, {k1}) are needed, got {got}")
        check_symmetric(self.covariance, "covariance")
        smallest = jnp.linalg.eigvalsh(self.covariance)[0]
        check(smallest > 0, f"covariance: must be positive definite, got an eigenvalue of {smallest}")
        self.variance = as_scalar("variance", variance)
        with at_once(variance):
            check(self.variance > 0, f"variance: must be positive, got {variance}")

    def data_covariance(self) -> Float[Array, "n n"]:
        """The covariance of x, [n, n], whose mean is 0."""
        latent = self.top_weight @ self.top_weight.T + self.covariance
        return self._noisy(self.weight @ latent @ self.weight.T)

    def information(self) -> Float[Array, "2"]:
        """(I(x; z2), I(x; z1 | z2)) in nats, [2]; their sum is I(x; z1).

        Half the differences of log det of the covariances of x, of x given z2, and of x given z1.
        """
        given_top = self._noisy(self.weight @ self.covariance @ self.weight.T)
        determinants = (jnp.linalg.slogdet(c)[1] for c in (self.data_covariance(), given_top))
        marginal, top = determinants
        n = self.weight.shape[0]
        return 0.5 * jnp.stack([marginal - top, top - n * jnp.log(self.variance)])

    def posterior(self) -> LinearPosterior:
        """The exact p(z2 | x) and p(z1 | z2, x)."""
        unit = jnp.eye(self.top_weight.shape[1], dtype=self.weight.dtype)
        through = self.weight @ self.top_weight
        top_gain = jnp.linalg.solve(self.data_covariance(), through).T
        top_scale = jnp.linalg.cholesky(unit - top_gain @ through)
        precision = jnp.linalg.inv(self.covariance)
        spread = jnp.linalg.inv(precision + self.weight.T @ self.weight / self.variance)
        scale = jnp.linalg.cholesky(0.5 * (spread + spread.T))
        gain = spread @ self.weight.T / self.variance
        return LinearPosterior(top_gain, top_scale, gain, spread @ precision @ self.top_weight, scale)

    def elbo(
        self, posterior: LinearPosterior, covariance: Float[Array, "n n"] | None = None
    ) -> tuple[Float[Array, ""], Float[Array, "2"]]:
        """(mean ELBO, mean rates of z2 and of z1 [2]) in nats, over data of mean 0 and a covariance [n, n].

        Args:
          posterior: any q; the exact one gives the ELBO log p(x).
          covariance: of the data; None: the model's own.
        """
        q, c = posterior, self.data_covariance() if covariance is None else covariance
        k1, k2 = self.top_weight.shape
        n = self.weight.shape[0]
        top = q.top_gain @ c @ q.top_gain.T + q.top_scale @ q.top_scale.T  # E z2 z2'
        both = q.top_gain @ c  # E z2 x'
        log_scale = lambda root: 2 * jnp.linalg.slogdet(root)[1]
        top_rate = 0.5 * (jnp.trace(top) - k2 - log_scale(q.top_scale))
        left = q.top_weight - self.top_weight
        cross = left @ both @ q.gain.T
        shift = q.gain @ c @ q.gain.T + cross + cross.T + left @ top @ left.T + q.scale @ q.scale.T
        prior = jnp.linalg.slogdet(self.covariance)[1]
        rate = 0.5 * (jnp.trace(jnp.linalg.solve(self.covariance, shift)) - k1 - log_scale(q.scale) + prior)
        unexplained = jnp.eye(n, dtype=c.dtype) - self.weight @ q.gain
        through = self.weight @ q.top_weight
        mixed = jnp.sum((through @ both) * unexplained)
        square = jnp.sum((unexplained @ c) * unexplained) - 2 * mixed + jnp.sum((through @ top) * through)
        square = square + jnp.sum((self.weight @ q.scale) ** 2)
        reconstruction = n * (HALF_LOG_TAU + 0.5 * jnp.log(self.variance)) + 0.5 * square / self.variance
        return -reconstruction - top_rate - rate, jnp.stack([top_rate, rate])

    def log_likelihood(self, covariance: Float[Array, "n n"] | None = None) -> Float[Array, ""]:
        """The mean of log p(x) in nats, a scalar, over data of mean 0 and a covariance [n, n] (None: the model's)."""
        own = self.data_covariance()
        given = own if covariance is None else covariance
        log_determinant = jnp.linalg.slogdet(own)[1]
        return -own.shape[0] * HALF_LOG_TAU - 0.5 * (log_determinant + jnp.trace(jnp.linalg.solve(own, given)))

    def _noisy(self, covariance):
        return covariance + self.variance * jnp.eye(covariance.shape[0], dtype=covariance.dtype)
