"""Classifier-free guidance: away from what the network says without the condition.

    D = D(xt | c) + (scale - 1) (D(xt | c) - D(xt | null))

The convention: scale = 1 + w with Ho & Salimans' w, so that scale 1 is no guidance and 0 is no condition; Imagen's and
Stable Diffusion's "guidance scale" is this scale.

    xt, cond, null --> one batch of 2b --> the network once --> D(. | c), D(. | null) --> rule
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import as_samples, check_time
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, Denoiser, PerSample, Sample, Time
from diffjax.guidance._base import AbstractGuide, AbstractRule, Linear, guided
from diffjax.parameterisation import NetworkDenoiser


class OnePass(AbstractGuide):
    """`(xt [b, *d], t) -> (D(xt | cond), D(xt | null))`, the network evaluated once, on a doubled batch.

    Attributes:
      denoiser: from `make_denoiser` with a condition.
      null: the "no condition", the same tree, each leaf broadcasting to it.
    """

    denoiser: NetworkDenoiser
    null: Cond

    def __check_init__(self):
        cond = getattr(self.denoiser, "cond", None)
        if cond is None:
            kind = type(self.denoiser)
            raise ValueError(f"denoiser: a NetworkDenoiser with a condition is needed, got cond=None in {kind}")
        trees = [jax.tree.structure(tree) for tree in (cond, self.null)]
        if trees[0] != trees[1]:
            got = f"a {type(self.null).__name__}" if callable(self.null) else trees[1]
            raise ValueError(f"null: the condition's tree {trees[0]} is needed, got {got}")

    def per_sample_fields(self) -> tuple[str, ...]:
        """("null",) where each of its leaves has one row a sample, as the condition [b, ...] has, and b > 1."""
        shapes = [[getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(x)] for x in (self.denoiser.cond, self.null)]
        rows = lambda c, empty: len(c) == len(empty) > 0 and c[0] == empty[0] > 1
        return ("null",) if all(map(rows, *shapes)) else ()

    def __call__(self, xt: Sample, t: Time) -> tuple[Sample, Sample]:
        join = lambda c, empty: jnp.concatenate([c, jnp.broadcast_to(jnp.asarray(empty, c.dtype), c.shape)])
        both = jax.tree.map(join, self.denoiser.cond, self.null)
        doubled = eqx.tree_at(lambda d: d.cond, self.denoiser, both)
        xt = as_samples("xt", xt)
        check_time(t, xt)
        t = t if jnp.ndim(t) == 0 else jnp.concatenate([t, t])
        cond, uncond = jnp.split(doubled(jnp.concatenate([xt, xt]), t), 2)
        return cond, uncond


@checked_numbers
def classifier_free(
    denoiser: NetworkDenoiser,
    null: Cond,
    scale: PerSample,
    *,
    rule: AbstractRule = Linear(),  # noqa: B008 - it is immutable
    negative: bool = False,
) -> Denoiser:
    """Classifier-free guidance as a denoiser, in one forward pass of 2b samples.

    The scale is 1 + w: cond + (scale - 1)(cond - null). 1 is no guidance, 0 no condition.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import networks
    >>> network = dj.from_linen(networks.MLP(width=16, depth=1, num_classes=10))
    >>> diffusion = dj.Diffusion(network, dj.Cosine(), dj.VPrediction())
    >>> xt, labels = jnp.ones((4, 2)), jnp.array([0, 1, 2, 3])
    >>> params = network.init(jax.random.key(0), xt, jnp.zeros(4), labels)
    >>> denoiser = dj.classifier_free(dj.make_denoiser(diffusion, params, labels), null=10, scale=2.0)
    >>> denoiser(xt, 0.5).shape
    (4, 2)

    Args:
      denoiser: from `make_denoiser` with a condition.
      null: the "no condition" that training dropped to (`drop_condition`): the same tree as the condition, each leaf
        broadcasting to it, or with one row a sample as it has. Another condition here is a negative one ("negative
        prompt").
      scale: [] or [b]; at 1, where the value can be seen, the denoiser itself is returned.
      rule: how the two answers become one: `Linear()`, `Rescaled()`, `Projected()`, `OptimalScale()`.
      negative: whether a scale below 0, away from the condition, is meant.

    Raises:
      ValueError: the denoiser has no condition, null is another tree, or the scale is not finite or below 0.

    Source: Ho & Salimans 2022 (Classifier-free diffusion guidance), eq. 6, with w = scale - 1.
    """
    return guided(OnePass(denoiser, null), denoiser, scale, rule, negative)
