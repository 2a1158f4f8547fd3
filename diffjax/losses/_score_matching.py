"""Score matching on samples x ~ p: losses for a score network s(x) that need neither a kernel nor the density.

    explicit            1/2 E||s - grad log p||^2
    implicit            E[ 1/2 ||s||^2 + tr(ds/dx) ]                     = explicit - 1/2 E||grad log p||^2
    sliced              E_v[ 1/2 (v's)^2 + v'(ds/dx)v ],  E[v v'] = I    = implicit, in expectation over v
    sliced, reduced     1/2 ||s||^2 + E_v[ v'(ds/dx)v ]                  = implicit; its variance comes from ds/dx alone
    finite differences  1/2 ||(s+ + s-)/2||^2 + v'(s+ - s-)/(2 h),  s+- = s(x +- h v)     no derivative of s in x

All are sums over features. Time and condition are closed over by `score_apply(params, x [b, *d]) -> s [b, *d]`, which
acts on each sample by itself; a weight for each sample (sigma^2 of its level, say) goes on `aux["per_sample"]`:

    xt ~ p_t --> score_apply = lambda params, xt: net(params, xt, t) --> loss --> mean(sigma(t)^2 aux["per_sample"])

Source: Hyvärinen 2005, theorem 1; Song et al. 2019 (Sliced score matching), eqs. 7-8; Pang et al. 2020.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffjax._arrays import (
    answered,
    as_samples,
    at_once,
    check,
    check_key,
    default_index,
    expand,
    sample_keys,
    sum_features,
)
from diffjax._numbers import checked_numbers
from diffjax._typing import Index, Key, Params, Sample, Score, Time

Loss = tuple[Float[Array, ""], dict[str, Array]]
ScoreApply = Callable[[Params, Sample], Sample]


def explicit_score_matching(
    params: Params,
    key: Key,
    x: Sample,
    *,
    score_apply: ScoreApply,
    true_score: Score,
    index: Index | None = None,
) -> Loss:
    """1/2 E||s(x) - grad log p(x)||^2 for samples x [b, *d] of p whose score is known: the Fisher divergence.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import losses
    >>> x, score = jnp.ones((4, 2)), lambda x: -x
    >>> apply = lambda params, x: params * x
    >>> loss, _ = losses.explicit_score_matching(-1.0, jax.random.key(0), x, score_apply=apply, true_score=score)
    >>> print(loss)
    0.0

    Args:
      params: of the score network.
      key: unused, and so is `index`: nothing is drawn. They are there so that one loss can stand for another.
      x: samples [b, *d].
      score_apply: `(params, x) -> s [b, *d]`.
      true_score: `x [b, *d] -> grad log p(x) [b, *d]`.
      index: global indices [b].

    Returns:
      The loss, a scalar, and `{"per_sample": [b]}`.

    Source: Hyvärinen 2005, eq. 2.
    """
    x = as_samples("x", x)
    s = _score(score_apply, params, x)
    return _mean(_half_square(s - answered("true_score", true_score(x), x.shape)))


@checked_numbers
def implicit_score_matching(
    params: Params, key: Key, x: Sample, *, score_apply: ScoreApply, block: int = 1, index: Index | None = None
) -> Loss:
    """E[ 1/2 ||s||^2 + tr(ds/dx) ] with the exact trace: one forward product for each of the d features.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import losses
    >>> apply = lambda params, x: params * x
    >>> loss, _ = losses.implicit_score_matching(-1.0, jax.random.key(0), jnp.ones((4, 2)), score_apply=apply)
    >>> print(loss)  # |x|^2/2 - 2
    -1.0

    Args:
      params: of the score network.
      key: unused, and so is `index`: nothing is drawn.
      x: samples [b, *d].
      score_apply: `(params, x) -> s [b, *d]`.
      block: forward products taken together. Memory is that of the network on `block` batches, for they are computed
        again in the backward pass; more than one pays on an accelerator that one batch does not fill.
      index: global indices [b].

    Returns:
      The loss, a scalar, and `{"per_sample": [b]}`. It is the explicit loss less 1/2 E||grad log p||^2.

    Raises:
      ValueError: block is below 1.

    Source: Hyvärinen 2005, theorem 1.
    """
    x = as_samples("x", x)
    if block < 1:
        raise ValueError(f"block: at least 1 is needed, got {block}")
    s, push = jax.linearize(lambda x: _score(score_apply, params, x), x)

    @jax.checkpoint
    def diagonal(k):
        e = jax.nn.one_hot(k, x[0].size, dtype=x.dtype).reshape(x.shape[1:])
        return sum_features(push(jnp.broadcast_to(e, x.shape)) * e)

    trace = jnp.sum(jax.lax.map(diagonal, jnp.arange(x[0].size), batch_size=block), axis=0)
    return _mean(_half_square(s) + trace)


@checked_numbers
def sliced_score_matching(
    params: Params,
    key: Key,
    x: Sample,
    *,
    score_apply: ScoreApply,
    projections: int = 1,
    draw: Callable[..., Array] = jax.random.rademacher,
    index: Index | None = None,
) -> Loss:
    """E_v[ 1/2 (v's)^2 + v'(ds/dx)v ]: one forward product for each projection v.

    >>> import jax, jax.numpy as jnp
    >>> from diffjax import losses
    >>> apply = lambda params, x: params * x
    >>> loss, _ = losses.sliced_score_matching(-1.0, jax.random.key(0), jnp.ones((4, 2)), score_apply=apply)
    >>> loss.shape
    ()

    Args:
      params: of the score network.
      key: the projections of sample i use `fold_in(key, index_i)`.
      x: samples [b, *d].
      score_apply: `(params, x) -> s [b, *d]`.
      projections: for each sample, averaged over.
      draw: `(key, shape, dtype) -> v` with E[v v'] = I, such as `jax.random.normal`; default Rademacher.
      index: global indices [b], default 0 .. b - 1.

    Returns:
      The loss, a scalar, and `{"per_sample": [b]}`. Its expectation is the implicit loss.

    Raises:
      ValueError: projections is below 1.

    Source: Song et al. 2019 (Sliced score matching), eq. 7.
    """
    check_key(key)
    x = as_samples("x", x)

    def one(v):
        s, push = jax.jvp(lambda x: _score(score_apply, params, x), (x,), (v,))
        return 0.5 * sum_features(v * s) ** 2 + sum_features(v * push)

    return _mean(_over_projections(one, key, x, projections, draw, index))


@checked_numbers
def sliced_score_matching_vr(
    params: Params,
    key: Key,
    x: Sample,
    *,
    score_apply: ScoreApply,
    projections: int = 1,
    draw: Callable[..., Array] = jax.random.rademacher,
    index: Index | None = None,
) -> Loss:
    """1/2 ||s||^2 + E_v[ v'(ds/dx)v ]: sliced score matching with the square of s known.

    Its variance is that of v'(ds/dx)v: most often the smaller one, but not where ds/dx and ss'/2 nearly cancel.

    The arguments and results are those of `sliced_score_matching`: samples x [b, *d], a scalar loss, `per_sample` [b].

    Source: Song et al. 2019 (Sliced score matching), eq. 8.
    """
    check_key(key)
    x = as_samples("x", x)

    def one(v):
        s, push = jax.jvp(lambda x: _score(score_apply, params, x), (x,), (v,))
        return _half_square(s) + sum_features(v * push)

    return _mean(_over_projections(one, key, x, projections, draw, index))


@checked_numbers
def finite_difference_sliced(
    params: Params,
    key: Key,
    x: Sample,
    *,
    score_apply: ScoreApply,
    step: Time = 1e-2,
    projections: int = 1,
    draw: Callable[..., Array] = jax.random.rademacher,
    index: Index | None = None,
) -> Loss:
    """1/2 ||(s+ + s-)/2||^2 + v'(s+ - s-)/(2 h) with s+- = s(x +- h v): two plain evaluations for each projection.

    It is `sliced_score_matching_vr` up to O(h^2), exactly 1/2 s'(v'd2s v) h^2 + 1/6 v'(d3s vvv) h^2 to leading order.
    In float32 rounding adds about 1e-7 |s| sqrt(d)/h, so the best h is some 0.01 of the length on which s varies:
    for samples noised at sigma, h = 0.01 sigma. bfloat16 has too few digits for a difference: score in float32.

    Args:
      params: of the score network.
      key: the projections of sample i use `fold_in(key, index_i)`.
      x: samples [b, *d].
      score_apply: `(params, x) -> s [b, *d]`.
      step: h, in units of x, a scalar or one for each sample [b]; positive.
      projections: for each sample, averaged over.
      draw: `(key, shape, dtype) -> v` with E[v v'] = I; default Rademacher.
      index: global indices [b], default 0 .. b - 1.

    Returns:
      The loss, a scalar, and `{"per_sample": [b]}`.

    Raises:
      ValueError: step is not positive, or projections is below 1.

    Source: Pang et al. 2020 (Efficient learning of generative models via finite-difference score matching), for a
    score network; there the direction's length is the step.
    """
    check_key(key)
    x = as_samples("x", x)
    with at_once(step):
        check(jnp.asarray(step) > 0, f"step: must be positive, got {step}")
    h = jnp.broadcast_to(jnp.asarray(step, x.dtype), x.shape[:1])

    def one(v):
        hop = expand(h, x) * v
        ahead, behind = jax.vmap(lambda y: _score(score_apply, params, y))(jnp.stack([x + hop, x - hop]))
        return _half_square(0.5 * (ahead + behind)) + sum_features(v * (ahead - behind)) / (2 * h)

    return _mean(_over_projections(one, key, x, projections, draw, index))


def _over_projections(one, key, x, projections, draw, index):
    """The mean of `one(v) [b]` over projections v [b, *d], each sample's from its own key."""
    if projections < 1:
        raise ValueError(f"projections: at least 1 is needed, got {projections}")
    keys = sample_keys(key, default_index(x.shape[0], index))
    v = jax.vmap(lambda k: draw(k, (projections, *x.shape[1:]), x.dtype), out_axes=1)(keys)
    return jnp.mean(jax.vmap(one)(v), axis=0)


def _score(score_apply, params, x):
    return answered("score_apply", score_apply(params, x), x.shape)


def _half_square(s):
    return 0.5 * sum_features(s**2)


def _mean(per_sample) -> Loss:
    return jnp.mean(per_sample), {"per_sample": per_sample}
