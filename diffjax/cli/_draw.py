"""Samples of a run, whatever their number: sample i depends on the seed, its label and i alone.

params, labels --> denoiser --> sample_n --> x0      by chunks, each spread over the devices
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from diffjax.config import Config, Data, Parts, build_grid
from diffjax.guidance import classifier_free
from diffjax.parameterisation import make_denoiser
from diffjax.samplers import sample_n
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
        self.mesh = data_mesh()
        self.params = jax.device_put(params, NamedSharding(self.mesh, PartitionSpec()))

    def __call__(self, n: int, labels: Any, seed: int) -> np.ndarray:
        """n samples [n, *d] for labels [n] or None."""
        parts = self.parts
        x0 = sample_n(
            jax.random.key(seed),
            parts.process,
            self.denoiser(labels),
            self.shape,
            n,
            ts=self.ts,
            stepper=parts.stepper,
            chunk=self.chunk,
            mesh=self.mesh,
        )
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
