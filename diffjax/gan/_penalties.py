"""What keeps a discriminator smooth: penalties on its gradient, and spectral norm.

    R1 = gamma/2 E_data |grad_x D(x)|^2         R2 = gamma/2 E_samples |grad_x D(x)|^2
    lazy: at every k-th step, times k           spectral norm: W/sigma(W), sigma the largest singular value

Without a penalty gradient descent does not converge even where the generator is all but right; with one it does, at a
rate that `DiracGAN` gives. A lazy penalty has the gradient of the eager one on average over k steps, in one k-th of the
time; it is added to the loss of the step, so that Adam needs no other betas, as it would if it had steps of its own.

Source: Mescheder et al. 2018, eq. 9, arXiv:1801.04406; lazy: Karras et al. 2020 (StyleGAN2), appendix B,
arXiv:1912.04958; Miyato et al. 2018 (Spectral normalization), algorithm 1, arXiv:1802.05957.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_accumulators,
    as_samples,
    at_once,
    check,
    check_key,
    check_real,
    leaves_by_path,
    mean_features,
    sum_features,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Key, Params, Sample, Scalar, WholeNumber
from diffjax.gan._losses import Logits


@checked_numbers
def gradient_penalty(discriminator: Callable[[Sample], Logits], x: Sample, gamma: Scalar = 1.0) -> Float[Array, " b"]:
    """gamma/2 |grad_x D(x)|^2 of each sample, [b]: R1 where x are data, R2 where they are samples.

    >>> import jax.numpy as jnp
    >>> print(gradient_penalty(lambda x: jnp.sum(x**2, axis=1), jnp.array([[1.0, 2.0]]), gamma=0.5))
    [5.]

    Args:
      discriminator: `x [b, *d] -> logits [b, *m]`, each sample's apart from the others', so without batch norm; of
        several logits a sample the mean counts.
      x: data or samples, [b, *d].
      gamma: its weight, a finite scalar, at least 0; it may be traced, so that annealing it compiles nothing.

    Returns:
      [b], to be added to the discriminator's loss.

    Raises:
      ValueError: gamma is no scalar, not finite or negative, or the discriminator answers for another batch.

    Source: Mescheder et al. 2018, eq. 9, arXiv:1801.04406.
    """
    x = as_samples("x", x)
    check_nonnegative("gamma", gamma)
    of_batch = lambda x: jnp.sum(mean_features(answered("discriminator", discriminator(x), (x.shape[0], ...))))
    squared = sum_features(as_accumulators(jax.grad(of_batch)(x)) ** 2)
    return (0.5 * jnp.asarray(gamma)).astype(squared.dtype) * squared


def check_nonnegative(name: str, value: Any) -> None:
    """Raises `ValueError` where a number `name` is no scalar, not finite or below 0; what is traced passes."""
    check_real(name, value)
    with at_once(value):
        check((value >= 0) & jnp.isfinite(value), f"{name}: a finite number, not below 0, got {value}")


@checked_numbers
def lazy(penalty: Callable[[], Float[Array, " b"]], step: WholeNumber, *, every: int = 16) -> Float[Array, " b"]:
    """every times a penalty at the steps that `every` divides, zeros at the others, where it is not computed; [b].

        mean over `every` steps = penalty

    >>> import jax.numpy as jnp
    >>> from diffjax import gan
    >>> penalty = lambda: jnp.array([2.0])
    >>> print(gan.lazy(penalty, 16, every=16), gan.lazy(penalty, 17, every=16))
    [32.] [0.]

    Args:
      penalty: `() -> [b]`, such as `lambda: gradient_penalty(discriminator, x0, gamma)`.
      step: of training, such as `Context.step`.
      every: steps from one to the next, at least 1; 1 is the penalty itself.

    Returns:
      [b], to be added to the discriminator's loss.

    Raises:
      ValueError: every is not positive, or step is no whole number.

    Source: Karras et al. 2020 (StyleGAN2), appendix B, arXiv:1912.04958.
    """
    if every < 1:
        raise ValueError(f"every: at least 1 is needed, got {every}")

    def checked():
        value = penalty()
        return answered("penalty", value, jnp.shape(value)[:1])

    if every == 1:
        return checked()
    shape = jax.eval_shape(checked)
    nothing = lambda: jnp.zeros(shape.shape, shape.dtype)
    return jax.lax.cond(jnp.asarray(step) % every == 0, lambda: every * checked(), nothing)


def init_power(key: Key, params: Params) -> dict[str, Float[Array, " k"]]:
    """Unit vectors from which `spectral_norm` starts, for each matrix of parameters.

        u = n/|n|,   n ~ N(0, I)

    >>> import jax, jax.numpy as jnp
    >>> power = init_power(jax.random.key(0), {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)})
    >>> print({path: u.shape for path, u in power.items()})
    {'kernel': (2,)}

    Args:
      key: one key.
      params: a discriminator's parameters, a pytree of arrays [*d]; those of fewer than two axes, such as biases, have
        no vector.

    Returns:
      Path of each matrix -> [k], k its last axis.

    Raises:
      ValueError: the key is none.

    Source: Miyato et al. 2018, algorithm 1, arXiv:1802.05957.
    """
    check_key(key)
    matrices = {path: leaf for path, leaf in leaves_by_path(params).items() if jnp.ndim(leaf) > 1}
    draw = lambda i, leaf: _unit(jax.random.normal(jax.random.fold_in(key, i), leaf.shape[-1:], leaf.dtype))
    return {path: draw(i, leaf) for i, (path, leaf) in enumerate(matrices.items())}


def spectral_norm(
    params: Params, power: Mapping[str, Float[Array, " k"]]
) -> tuple[Params, dict[str, Float[Array, " k"]]]:
    """Divides each matrix of parameters by its largest singular value, which a power iteration follows.

        v <- W u/|W u|,   u <- W'v/|W'v|,   sigma = v'W u,   W/sigma

    A kernel of more axes is a matrix [all but the last, last]. The vectors are carried from step to step, and so
    approach the singular ones; u and v are constants to the gradient, sigma is not. All are computed in float32 at
    least. It works on parameters, so that it serves networks of any library, and those of Flax keep their pure `apply`;
    `flax.linen.SpectralNorm` computes the same inside a layer, with its vectors in a second collection.

    >>> import jax, jax.numpy as jnp
    >>> params = {"kernel": jnp.diag(jnp.array([3.0, 1.0])), "bias": jnp.ones(2)}
    >>> power = init_power(jax.random.key(0), params)
    >>> for _ in range(20):
    ...     normalised, power = spectral_norm(params, power)
    >>> print(jnp.round(jnp.diag(normalised["kernel"]), 3))
    [1.    0.333]

    Args:
      params: a discriminator's parameters, a pytree of arrays [*d].
      power: the vectors, as `init_power` makes them.

    Returns:
      Parameters and vectors, of the same shapes as those given.

    Raises:
      ValueError: the vectors are of other parameters.

    Source: Miyato et al. 2018, algorithm 1, arXiv:1802.05957.
    """
    after = {}

    def normalised(path: str, leaf: Array) -> Array:
        if jnp.ndim(leaf) < 2:
            return leaf
        if not isinstance(power, Mapping) or path not in power or power[path].shape != leaf.shape[-1:]:
            raise ValueError(
                f"power: a vector of shape {leaf.shape[-1:]} is needed for {path}; make them by init_power"
            )
        w, u = as_accumulators((leaf.reshape(-1, leaf.shape[-1]), jax.lax.stop_gradient(power[path])))
        fixed = jax.lax.stop_gradient(w)
        v = _unit(fixed @ u)
        moved = v @ fixed
        new = jnp.where(jnp.any(moved != 0), _unit(moved), u)  # a layer that starts at zero leaves u as it is
        after[path] = new.astype(power[path].dtype)
        sigma = v @ w @ new
        return (w / jnp.where(sigma == 0, 1.0, sigma)).astype(leaf.dtype).reshape(leaf.shape)

    by_path = leaves_by_path(params)
    leaves = [normalised(path, leaf) for path, leaf in by_path.items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves), after


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)
