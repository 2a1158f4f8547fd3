"""The denoising loss: one driver for every process, prediction type, weighting, penalty, coupling and time density.

key --split--+-----------> times ---------> t ----+--------------+---------------+
             +--> eps ~ N(0, I) --> coupling -+   |              |               |
x0 -------------------------------+-----------+   v              |               v
                                  |     +--> perturb(process) > xt       weighting(t)
                                  v     v                    |   |               |
                          target: y = a x0 + b eps   c_in xt, c_noise            |
                                  |                          |                   |
params, cond ---------------------+------------------> network.apply > y_hat     |
                                  +-----> penalty (mean square) of y_hat - y ----+--> mean over batch

`denoising_loss` draws times and noise; `per_sample_loss` is what is left once they are given.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_samples,
    check_key,
    check_time,
    default_index,
    expand,
    mean_features,
    normal_like,
    sample_keys,
    time_dtype,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, DrawTimes, Index, Key, Params, Penalty, Sample, Scalar, Time
from diffjax.losses._weighting import native
from diffjax.parameterisation import apply_network, eps_error_scale, target
from diffjax.parameterisation._diffusion import Diffusion, check_diffusion
from diffjax.process._gaussian import perturb


def mean_square(error: Sample) -> Float[Array, " b"]:
    """The mean over features of error^2, [b, *d] -> [b]: the penalty of every quadratic loss.

    >>> import jax.numpy as jnp
    >>> from diffjax import losses
    >>> print(losses.mean_square(jnp.array([[1.0, 3.0]])))
    [5.]
    """
    error = as_samples("error", error)
    return mean_features(error**2)


@checked_numbers
def denoising_loss(
    diffusion: Diffusion,
    params: Params,
    key: Key,
    x0: Sample,
    cond: Cond = None,
    *,
    times: DrawTimes,
    weighting: Callable[..., Time],
    penalty: Penalty = mean_square,
    coupling: Callable[..., Sample] | None = None,
    index: Index | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """E[ w(t) mean_features (eps - eps_hat)^2 ], estimated on a batch, for whatever the network predicts.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import losses, networks
    >>> network = dj.from_linen(networks.MLP(width=16, depth=1))
    >>> diffusion = dj.Diffusion(network, dj.Cosine(), dj.VPrediction())
    >>> x0 = jnp.ones((4, 2))
    >>> params = network.init(jax.random.key(0), x0, jnp.zeros(4), None)
    >>> choices = {"times": dj.StratifiedTimes(diffusion.process), "weighting": losses.native}
    >>> loss = lambda p: dj.denoising_loss(diffusion, p, jax.random.key(1), x0, **choices)
    >>> (value, aux), slopes = jax.value_and_grad(loss, has_aux=True)(params)
    >>> value.shape, aux["per_sample"].shape
    ((), (4,))

    Args:
      diffusion: network, process and parameterisation; the network is called with a key, so dropout is on.
      params: the network's parameters.
      key: for times, noise and dropout; the noise of sample i uses `fold_in(eps_key, index_i)`.
      x0: data [b, *d].
      cond: conditions, a pytree of [b, ...], or None.
      times: `(key, n, *, index, total) -> (t [n], correction [n])`, such as `UniformTimes(process)`.
      weighting: `(process, parameterisation, t) -> w`, on the eps-loss, such as `constant` or `native`.
      penalty: `(y_hat - y) [b, *d] -> [b]`, such as `PseudoHuber(c)`.
      coupling: `(key, x0, eps, cond) -> eps`, which pairs the batch's noise with its data anew, such as
        `OptimalTransport()`; default: independent noise.
      index: global indices [b] of the samples (default 0 .. b - 1), so that a sample's noise does not depend on the
        device that draws it.
      total: the size of the global batch (default b), for stratified times.

    Returns:
      The loss, a scalar, and `{"t": [b], "per_sample": [b]}`: the times and the weighted loss of each sample.

    Source: Vincent 2011; Ho et al. 2020, eq. 14; the weights, Kingma & Gao 2023.
    """
    check_diffusion(diffusion)
    check_key(key)
    x0 = as_samples("x0", x0)
    n = x0.shape[0]
    t_key, eps, network_key, index = draw_noise(key, x0, index)
    drawn = times(t_key, n, index=index, total=n if total is None else total)
    t, correction = (answered("times", part, (n,)) for part in drawn)
    t, correction = t.astype(time_dtype(x0)), correction.astype(time_dtype(x0))
    if coupling is not None:
        eps = answered("coupling", coupling(jax.random.fold_in(key, 3), x0, eps, cond), x0.shape)
    per_sample = correction * per_sample_loss(
        diffusion,
        params,
        x0,
        eps,
        t,
        cond,
        weighting=weighting,
        penalty=penalty,
        key=network_key,
    )
    return jnp.mean(per_sample), {"t": t, "per_sample": per_sample}


def draw_noise(key: Key, x0: Sample, index: Index | None) -> tuple[Key, Sample, Key, Index]:
    """(key of the times, eps [b, *d], key of the network, index [b]): what a loss on noisy samples draws from its key.

    The noise of sample i is of its global index; where the batch is split, dropout differs by device.
    """
    times_key, eps_key, network_key = jax.random.split(key, 3)
    index = default_index(x0.shape[0], index)
    eps = normal_like(sample_keys(eps_key, index), x0)
    return times_key, eps, jax.random.fold_in(network_key, index[0]), index


def per_sample_loss(
    diffusion: Diffusion,
    params: Params,
    x0: Sample,
    eps: Sample,
    t: Time,
    cond: Cond = None,
    *,
    weighting: Callable[..., Time],
    penalty: Penalty = mean_square,
    key: Key | None = None,
) -> Float[Array, " b"]:
    """The denoising loss of given noise eps [b, *d] and times t [b]: w_y(t) penalty(y_hat - y), [b].

    w_y is the weighting carried from the eps-loss to the answer's own; see `denoising_loss` for the arguments. `key`
    is the network's, None to evaluate.
    """
    check_diffusion(diffusion)
    x0 = as_samples("x0", x0)
    eps = as_samples("eps", eps, x0.shape)
    check_time(t, x0)
    process, parameterisation = diffusion.process, diffusion.parameterisation
    t = _where_the_loss_is_finite(weighting, process, parameterisation, t)
    y = target(parameterisation, process, x0, eps, t)
    y_hat = apply_network(diffusion, params, perturb(process, x0, eps, t), t, cond, key=key)
    each = answered("penalty", penalty(answered("network", y_hat, y.shape) - y), x0.shape[:1])
    return _weight_on_answer(weighting, process, parameterisation, t) * each


def _where_the_loss_is_finite(weighting, process, parameterisation, t):
    """t, or the nearest time inside (0, 1) where the weight or the target at t is not a finite number.

    At t = 0 or 1 itself the target may be infinite (the score at sigma = 0), or one factor of the weight infinite and
    the other 0 (`on_v` and v-prediction: 1 everywhere). Where their product has a limit, it is that of the time inside
    to rounding; where it grows without bound, loss and gradient are large but finite.
    """
    a, b = parameterisation.coefficients(process, t)
    parts = (_weight_on_answer(weighting, process, parameterisation, t), a**2, b**2)
    finite = jnp.all(jnp.stack([jnp.broadcast_to(jnp.isfinite(part), jnp.shape(t)) for part in parts]), axis=0)
    step = jnp.finfo(jnp.result_type(t)).epsneg
    return jnp.where(finite, t, jnp.clip(t, step, 1 - step))


def _weight_on_answer(weighting, process, parameterisation, t):
    """w ||eps - eps_hat||^2 as a weight on ||y - y_hat||^2; `native` is 1 by definition, not by cancellation."""
    if weighting is native:
        return jnp.ones_like(t)
    return weighting(process, parameterisation, t) * eps_error_scale(parameterisation, process, t)


@checked_numbers
def drop_condition(key: Key, cond: Cond, null: Cond, probability: Scalar, *, index: Index | None = None) -> Cond:
    """Condition dropout for classifier-free training: each sample's condition becomes null with a probability.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import losses
    >>> labels = jnp.arange(4)
    >>> print(losses.drop_condition(jax.random.key(0), labels, null=10, probability=1.0))
    [10 10 10 10]

    Args:
      key: sample i decides by `fold_in(key, index_i)`.
      cond: a pytree of [b, ...].
      null: a pytree of the same structure, each leaf broadcasting to one sample's condition.
      probability: in [0, 1], a scalar. A sample's whole condition is dropped, or none of it.
      index: global indices [b].

    Source: Ho & Salimans 2022 (Classifier-free diffusion guidance), algorithm 1.
    """
    check_key(key)
    n = jax.tree.leaves(cond)[0].shape[0]
    keys = sample_keys(key, default_index(n, index))
    dropped = jax.vmap(jax.random.uniform)(keys) < probability
    return jax.tree.map(lambda c, empty: jnp.where(expand(dropped, c), jnp.asarray(empty, c.dtype), c), cond, null)
