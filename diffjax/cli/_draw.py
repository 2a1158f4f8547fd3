"""Samples of a run, whatever their number: sample i depends on the seed, its label and i alone.

On several processes all draw together, each on its own devices, and all have the samples in the end.

params, labels --> denoiser --> sample_n --> x0      by chunks, each spread over the devices
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.config import Config, Data, Parts, build_grid
from diffjax.guidance import classifier_free, within_interval
from diffjax.parameterisation import make_denoiser
from diffjax.samplers import sample_n
from diffjax.training import data_mesh, fetch


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
        interval: tuple[float, float] | None = None,
        ts: Any = None,
        chunk: int = 256,
        mesh: Mesh | None = None,
    ):
        self.parts, self.shape, self.chunk = parts, data.shape, chunk
        self.scale = config.guidance.scale if scale is None else scale
        self.interval = check_interval(interval, data.classes)
        self.ts = parts.ts if ts is None else ts
        self.mesh = data_mesh() if mesh is None else mesh
        self.params = _on_every_device(params, self.mesh)

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
        return fetch(x0)

    def denoiser(self, cond: Any, *, guided: bool = True) -> Any:
        """The denoiser told of cond, guided where there is anything to follow."""
        parts = self.parts
        plain = make_denoiser(
            self.params, cond, network=parts.network, process=parts.process, parameterisation=parts.parameterisation
        )
        if not guided or cond is None:
            return plain
        guiding = classifier_free(plain, parts.null, self.scale)
        return guiding if self.interval is None else within_interval(parts.process, guiding, plain, *self.interval)


def _on_every_device(params: Any, mesh: Mesh) -> Any:
    """Whole on each device of a mesh, wherever they were; of several processes they are on these devices already."""
    whole = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(params, whole)
    return jax.jit(lambda tree: tree, out_shardings=whole)(params)


def grid(config: Config, parts: Parts, steps: int | None) -> Any:
    """Descending times [n + 1]: the run's own, or as many steps as are asked for."""
    return parts.ts if steps is None else build_grid(config.sampler, parts.process, steps)


def check_scale(scale: float | None, classes: int | None) -> float | None:
    """The scale, or a `ValueError` where there is nothing to guide by or it is not a finite number from 0 on."""
    if scale is not None and (classes is None or not 0 <= scale < np.inf):
        why = "this run knows no classes" if classes is None else "a finite number, not below 0, is needed"
        raise ValueError(f"guidance: {why}, got {scale}")
    return scale


def check_interval(interval: tuple[float, float] | None, classes: int | None) -> tuple[float, float] | None:
    """The interval, or a `ValueError` where there is nothing to guide by or it is empty."""
    if interval is not None and (classes is None or not interval[0] < interval[1]):
        why = "this run knows no classes" if classes is None else "the first must be below the second"
        raise ValueError(f"interval: {why}, got {interval[0]} {interval[1]}")
    return interval
