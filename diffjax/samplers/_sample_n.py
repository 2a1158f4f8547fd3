"""Any number of samples, by chunks and over devices: sample i is a function of the key and of i alone.

    i = 0 .. n - 1 --chunks of equal size--> split over the mesh --> prior --> steps --> x0 [n, *shape]

Each device draws and steps its own samples (`jax.shard_map`), so nothing is sent between them. All chunks share one
compilation; the last is filled up, and the surplus cut off.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from tqdm import tqdm

from diffjax._arrays import as_leaves, check_key, check_shape
from diffjax._numbers import checked_numbers
from diffjax._typing import Denoiser, FlowMap, GridLike, Key
from diffjax.process import AbstractGaussianProcess
from diffjax.process._gaussian import prior
from diffjax.samplers._base import _scan, check_stepper, plan
from diffjax.samplers._batch import check_batch, over_devices, split_batch
from diffjax.samplers._stepper import AbstractStepper


@checked_numbers
def sample_n(
    key: Key,
    process: AbstractGaussianProcess,
    denoiser: Denoiser | FlowMap,
    shape: tuple[int, ...],
    n: int,
    *,
    ts: GridLike,
    stepper: AbstractStepper,
    chunk: int = 256,
    final_denoise: bool | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> Float[Array, "n *shape"]:
    """n samples from noise, chunk by chunk. A jitted entry point.

    Noise is the same bit for bit, and x0 to rounding, for any chunk, n and number of devices; sample i is row i of
    `sample(key_1, process, denoiser, prior(key_0, process, (n, *shape)), ts, stepper)` with key_0, key_1 = split(key).

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> process, data = dj.Cosine(), dj.Gaussian(jnp.array([3.0, -1.0]), 0.01)
    >>> denoiser, ts = dj.exact_denoiser(data, process), dj.logsnr_grid(process, 20)
    >>> x0 = dj.sample_n(jax.random.key(0), process, denoiser, (2,), 1000, ts=ts, stepper=dj.DDIM(1.0))
    >>> x0.shape
    (1000, 2)

    Args:
      key: for the prior and for stochastic steppers.
      process: the forward process that the grid's times refer to.
      denoiser: `(xt [k, *shape], t) -> x0_hat`; its conditions (`per_sample_fields`) have a row for each of n samples.
        `static_threshold(denoiser)` clips it, for pictures in [-1, 1].
      shape: of one sample.
      n: how many.
      ts: a descending grid of times [steps + 1].
      stepper: the method, such as `DDIM()`.
      chunk: at most so many samples at a time, over all devices; at least one each.
      final_denoise: whether to end with D(x, ts[-1]); by default as in `sample`.
      mesh: the devices to split each chunk over, such as `jax.make_mesh((8,), ("data",))`; or None.
      progress: whether to show a bar, waiting for each chunk.

    Returns:
      x0 [n, *shape], on the devices.

    Raises:
      ValueError: n or chunk is not positive, a condition (or what else has rows) has not n rows, or as `sample`.
    """
    check_key(key)
    check_shape(shape, 0)
    check_stepper(stepper)
    for name, value in {"n": n, "chunk": chunk}.items():
        if value < 1:
            raise ValueError(f"{name}: a positive number of samples is needed, got {value}")
    rows, rest = split_batch((denoiser, stepper))
    check_batch(rows, n)
    dtype = jnp.result_type(float)
    planned = plan(process, stepper, ts, dtype)
    stepper.check_denoiser(denoiser, process, *planned)
    if final_denoise is None:
        final_denoise = stepper.final_denoise
    grid, weights = as_leaves(planned, dtype)
    devices = 1 if mesh is None else mesh.size
    chunk = max(chunk // devices, 1) * devices
    size = math.ceil(n / math.ceil(n / chunk) / devices) * devices
    leaves, layout = jax.tree.flatten(rows)
    done = []
    bar = tqdm(range(0, n, size), desc="compiling", unit="chunk", disable=not progress)
    for start in bar:
        index = np.arange(start, start + size)
        kept = np.minimum(index, n - 1)  # the surplus repeats the last row
        some = [jnp.asarray(leaf[kept]) for leaf in leaves]
        split = (jax.tree.unflatten(layout, some), jnp.asarray(index))
        x0 = sample_chunk(split, (rest, key, process, grid, weights), tuple(shape), final_denoise, mesh)
        bar.set_description("drawing", refresh=start == 0)  # the first call has come back, so that it is compiled
        done.append(jax.block_until_ready(x0) if progress else x0)
    return jnp.concatenate(done)[:n]


@eqx.filter_jit
def sample_chunk(rows, shared, shape, final_denoise, mesh):
    """One chunk of `sample_n`: rows hold what each sample has of its own and its index, shared the rest."""

    def run(rows, shared):
        (some, index), (rest, key, process, ts, weights) = rows, shared
        denoiser, stepper = eqx.combine(some, rest)
        prior_key, key = jax.random.split(key)
        xt = prior(prior_key, process, (index.shape[0], *shape), index=index)
        nowhere = jnp.zeros(ts.shape, jnp.int32)
        return _scan(key, denoiser, xt, ts, stepper, weights, index, nowhere, 0, final_denoise, False)[0]

    return over_devices(run, mesh, rows, shared, 0)
