"""Samples of a run, whatever their number: sample i depends on the seed, its condition and i alone.

On several processes all draw together, each on its own devices, and all have the samples in the end.

params, index, cond --> family.sample --> x0      by chunks, each spread over the devices
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from diffjax._typing import Cond, Params
from diffjax.cli._hosts import log
from diffjax.cli._print import is_watched
from diffjax.training import Family, data_mesh, gather_to_host, is_main


class Draw:
    """Samples of a family by chunks, spread over the devices; sample i depends on seed, condition and i alone."""

    def __init__(
        self,
        family: Family,
        params: Params,
        options: Mapping[str, Any] | None = None,
        *,
        chunk: int = 256,
        mesh: Mesh | None = None,
    ):
        """Takes a family, its params and options of its samples; raises `ValueError` where these do not fit."""
        self.family, self.options, self.chunk = family, {} if options is None else dict(options), chunk
        self.nfe = family.nfe(**self.options)
        self.mesh = data_mesh() if mesh is None else mesh
        self.params = on_every_device(params, self.mesh)

    def __call__(self, n: int, cond: Cond, seed: int, *, silent: bool = False) -> np.ndarray:
        """n samples [n, *d] for conditions [n, ...] or None; it is said, with a bar on a terminal, unless `silent`."""
        if not silent:
            log(f"compiling the sampler, then drawing {n:,} sample{'s' if n > 1 else ''} ...")
        devices, key = self.mesh.size, jax.random.key(seed)
        chunk = max(self.chunk // devices, 1) * devices
        size = math.ceil(n / math.ceil(n / chunk) / devices) * devices  # of all chunks, so that one program does
        progress, done = not silent and is_main() and is_watched(), []
        bar = tqdm(range(0, n, size), desc="compiling", unit="chunk", disable=not progress)
        for start in bar:
            index = np.arange(start, start + size, dtype=np.int32)
            rows = np.minimum(index, n - 1)
            own = jax.tree.map(lambda leaf, rows=rows: self._split(np.asarray(leaf)[rows]), cond)
            x0 = self.family.sample(self.params, key, self._split(index), own, **self.options)
            bar.set_description("drawing", refresh=start == 0)  # the first call has come back, so that it is compiled
            done.append(jax.block_until_ready(x0) if progress else x0)
        return gather_to_host(jnp.concatenate(done)[:n])  # without the surplus of the last chunk

    def _split(self, rows: np.ndarray) -> jax.Array:
        """Rows [m, ...], a part on each device."""
        over = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        return jax.make_array_from_callback(rows.shape, over, lambda part: rows[part])


def on_every_device(params: Params, mesh: Mesh) -> Params:
    """Whole on each device of a mesh, wherever they were; of several processes they are on these devices already."""
    whole = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(params, whole)
    return jax.jit(lambda tree: tree, out_shardings=whole)(params)
