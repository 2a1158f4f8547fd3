"""Samples of a run, whatever their number: sample i depends on the seed, its label and i alone.

On several processes all draw together, each on its own devices, and all have the samples in the end.

params, labels --> denoiser --> sample_n --> x0      by chunks, each spread over the devices
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax._typing import Cond, Denoiser, Grid, Params
from diffjax.cli._hosts import log
from diffjax.cli._print import is_watched
from diffjax.config import Config, Data, Parts, Samples, TrainedRun, build_denoiser
from diffjax.config._run import samples_bound
from diffjax.config._sampling import check_map_sampler, trained_parts
from diffjax.samplers._sample_n import sample_n
from diffjax.training import data_mesh, gather_to_host, is_main


class Draw:
    """Samples of a run by chunks, spread over the devices; sample i depends on the seed, its label and i alone."""

    def __init__(
        self,
        config: Config,
        samples: Samples | Data,
        parts: Parts,
        params: Params,
        *,
        ts: Grid | None = None,
        weak: TrainedRun | None = None,
        chunk: int = 256,
        mesh: Mesh | None = None,
    ):
        parts, params = trained_parts(config, parts, params)
        self.config, self.parts, self.shape, self.chunk = config, parts, samples.shape, chunk
        self.bound = samples_bound(config, samples, parts)
        self.ts = parts.ts if ts is None else ts
        check_map_sampler(config, parts, self.ts)
        self.mesh = data_mesh() if mesh is None else mesh
        self.params = _on_every_device(params, self.mesh)
        self.weak = None if weak is None else weak._replace(params=_on_every_device(weak.params, self.mesh))

    def __call__(self, n: int, labels: np.ndarray | None, seed: int, *, silent: bool = False) -> np.ndarray:
        """n samples [n, *d] for labels [n] or None; it is said, and a terminal shows a bar, unless `silent`."""
        parts = self.parts
        if not silent:
            log(f"compiling the sampler, then drawing {n:,} sample{'s' if n > 1 else ''} ...")
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
            progress=not silent and is_main() and is_watched(),
        )
        return gather_to_host(x0)

    def denoiser(self, cond: Cond, *, guided: bool = True) -> Denoiser:
        """The denoiser for labels [b] or None: as it was trained, or guided and with a threshold on x0_hat."""
        denoiser = self.parts.denoiser(self.params, cond)
        if not guided:
            return denoiser
        weak = None if self.weak is None else self.weak.denoiser(cond)
        return build_denoiser(self.config, self.parts, denoiser, self.bound, weak)


def _on_every_device(params: Params, mesh: Mesh) -> Params:
    """Whole on each device of a mesh, wherever they were; of several processes they are on these devices already."""
    whole = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(params, whole)
    return jax.jit(lambda tree: tree, out_shardings=whole)(params)
