"""Classifier-free guidance: away from what the network says without the condition.

    D = D(xt | c) + (scale - 1) (D(xt | c) - D(xt | null))

Scale 1 is none; Ho & Salimans' w is scale - 1, Imagen's and Stable Diffusion's w is this scale. The same combination of
eps, score or velocity is the same thing, for all are affine in x0_hat at fixed xt.

    xt, cond, null --> one batch of 2b --> the network once --> D(. | c), D(. | null) --> combination
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from diffjax._arrays import as_scalar, expand, is_concrete
from diffjax._typing import Cond, Denoiser, Sample, Time
from diffjax.parameterisation import NetworkDenoiser


class ClassifierFree(eqx.Module):
    """A guided denoiser; made by `classifier_free`. It evaluates the network once, on a doubled batch."""

    denoiser: NetworkDenoiser
    null: Any
    scale: Any

    def __call__(self, xt: Sample, t: Time) -> Sample:
        null = jax.tree.map(lambda c, empty: jnp.broadcast_to(jnp.asarray(empty, c.dtype), c.shape), *self._conds())
        both = jax.tree.map(lambda c, empty: jnp.concatenate([c, empty]), self.denoiser.cond, null)
        doubled = eqx.tree_at(lambda d: d.cond, self.denoiser, both)
        t = t if jnp.ndim(t) == 0 else jnp.concatenate([t, t])
        conditional, unconditional = jnp.split(doubled(jnp.concatenate([xt, xt]), t), 2)
        return conditional + (expand(self.scale, xt) - 1) * (conditional - unconditional)

    def _conds(self):
        return self.denoiser.cond, self.null


def classifier_free(denoiser: NetworkDenoiser, null: Cond, scale: Any) -> Denoiser:
    """Classifier-free guidance as a denoiser, in one forward pass of 2b samples.

    Args:
      denoiser: from `make_denoiser` with a condition.
      null: the "no condition" that training dropped to (`drop_condition`): the same tree as the condition, each leaf
        broadcasting to it.
      scale: [] or [b]; 1 is no guidance, and then, where the value can be seen, the denoiser itself is returned.

    Raises:
      ValueError: the denoiser has no condition, or null is another tree.

    Source: Ho & Salimans 2022 (Classifier-free diffusion guidance), eq. 6, with w = scale - 1.
    """
    cond = getattr(denoiser, "cond", None)
    if cond is None:
        raise ValueError(f"denoiser: a NetworkDenoiser with a condition is needed, got cond=None in {type(denoiser)}")
    if jax.tree.structure(cond) != jax.tree.structure(null):
        raise ValueError(
            f"null: the condition's tree {jax.tree.structure(cond)} is needed, got {jax.tree.structure(null)}"
        )
    scale = as_scalar(scale)
    if is_concrete(scale) and bool(jnp.all(scale == 1)):
        return denoiser
    return ClassifierFree(denoiser, null, scale)
