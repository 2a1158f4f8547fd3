"""Samples of a run, whatever their number: sample i depends on the seed, its label and i alone.

i, seed --> prior --> xT -----+
params, label --> denoiser ---+--> sample --> x0      by chunks, each spread over the devices
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from diffjax.config import Config, Data, Parts, build_grid
from diffjax.guidance import classifier_free
from diffjax.parameterisation import make_denoiser
from diffjax.process import prior
from diffjax.samplers import sample
from diffjax.training import data_mesh


class Draw:
    """Samples of a run by chunks, spread over the devices; sample i depends on the seed, its label and i alone."""

    def __init__(
        self,
        config: Config,
        data: Data,
        parts: Parts,
        params: Any,
        *,
        scale: float | None = None,
        ts: Any = None,
        chunk: int = 256,
    ):
        self.parts, self.shape, self.chunk = parts, data.shape, chunk
        self.scale = config.guidance.scale if scale is None else scale
        self.ts = parts.ts if ts is None else ts
        mesh = data_mesh()
        self.devices, self.split = mesh.size, NamedSharding(mesh, PartitionSpec("data"))
        self.params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

    def __call__(self, n: int, labels: Any, seed: int) -> np.ndarray:
        """n samples [n, *d] for labels [n] or None."""
        chunks = math.ceil(n / self.chunk)
        size = math.ceil(n / chunks / self.devices) * self.devices
        parts = [self._chunk(np.arange(start, start + size), labels, seed) for start in range(0, n, size)]
        return np.concatenate(parts)[:n]

    def _chunk(self, index: np.ndarray, labels: Any, seed: int) -> np.ndarray:
        cond = None if labels is None else labels[np.minimum(index, len(labels) - 1)]  # the last is drawn, and cut off
        prior_key, key = jax.random.split(jax.random.key(seed))
        place = lambda value: jax.device_put(value, self.split)
        process, stepper = self.parts.process, self.parts.stepper
        xt = place(prior(prior_key, process, (len(index), *self.shape), index=jnp.asarray(index)))
        denoiser = self.denoiser(None if cond is None else place(cond))
        x0 = sample(key, process, denoiser, xt, self.ts, stepper, index=place(index))
        return np.asarray(x0)

    def denoiser(self, cond: Any, *, guided: bool = True) -> Any:
        """The denoiser told of cond, guided where there is anything to follow."""
        parts = self.parts
        plain = make_denoiser(
            self.params, cond, network=parts.network, process=parts.process, parameterisation=parts.parameterisation
        )
        return classifier_free(plain, parts.null, self.scale) if guided and cond is not None else plain


def grid(config: Config, parts: Parts, steps: int | None) -> Any:
    """Descending times [n + 1]: the run's own, or as many steps as are asked for."""
    return parts.ts if steps is None else build_grid(config.sampler, parts.process, steps)


def check_scale(scale: float | None, classes: int | None) -> float | None:
    """The scale, or a `ValueError` where there is nothing to guide by or it is not finite."""
    if scale is not None and (classes is None or not np.isfinite(scale)):
        why = "this run knows no classes" if classes is None else "a finite number is needed"
        raise ValueError(f"guidance: {why}, got {scale}")
    return scale
