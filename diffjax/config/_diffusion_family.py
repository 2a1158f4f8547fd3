"""Diffusion, and flow maps, as a `training.Family`.

Parts --diffusion_family--> Family
params, index, cond, options --> denoiser --guidance, threshold--> steps from noise --> x0
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from diffjax._arrays import as_leaves, is_concrete
from diffjax._typing import Cond, Denoiser, FlowMap, Grid, Index, Key, Params, Sample
from diffjax.config._data import Samples
from diffjax.config._options import Config, OtherGuidance, OtherSampler
from diffjax.config._parts import Parts
from diffjax.config._registry import changed
from diffjax.config._sampling import (
    build_denoiser,
    check_map_sampler,
    learned_parts,
    rebuild_sampling,
    samples_bound,
    trained_parts,
)
from diffjax.inverse import RePaint
from diffjax.process import check_known
from diffjax.samplers import CFGpp
from diffjax.samplers._base import plan
from diffjax.samplers._batch import split_batch
from diffjax.samplers._sample_n import sample_chunk
from diffjax.training import Family

_EXACT = 4
"""Features up to which the trace in the likelihood is exact; beyond, one probe."""


class Inpainting(NamedTuple):
    """The part of samples that is known: the option `known` of a diffusion."""

    mask: Array
    """[*d], True where it is known."""
    y: Array
    """The known sample [1, *d]."""
    times: int = 10
    """How often RePaint takes each step."""


def diffusion_family(config: Config, samples: Samples, parts: Parts) -> Family:
    """A diffusion, or a flow map, as a family. The options of its samples are

        sampler       `OtherSampler`: another method, its numbers, grid or threshold
        steps         their number
        guidance      `OtherGuidance`
        autoguidance  `cond -> Denoiser` of a weaker model, which takes the place of uncond
        known         `Inpainting`
        ts            times [n + 1] instead of a grid's

    Its params are those of `Parts.init`; entries that no objective trains may be missing. Guidance and threshold are in
    samples alone, neither in the likelihood nor in latents.

    Args:
      config: of the run.
      samples: what samples are like.
      parts: of `build`, at a stage of the training where it has several.
    """
    own = DiffusionFunctions(config, samples, parts)
    flow = own.is_denoiser()
    return Family(
        init=parts.init,
        objectives=(parts.training_objective(),),
        sample=own.sample,
        options=frozenset({"sampler", "steps", "guidance", "autoguidance", "known", "ts"}),
        nfe=own.nfe,
        log_bound=own.log_bound if flow else None,
        likelihood_kind="flow" if flow else None,
        encode=own.encode if flow else None,
        decode=own.decode if flow else None,
        denoiser=own.denoiser,
    )


class DiffusionFunctions:
    """The functions of the family of a diffusion."""

    def __init__(self, config: Config, samples: Samples, parts: Parts):
        self.config, self.samples, self.parts = config, samples, parts
        self._changed = functools.cache(self._change)  # samples are drawn by chunks, each with the same options

    def is_denoiser(self) -> bool:
        """False for a flow map that was not trained at s = t, so that it has no probability flow."""
        if not self.parts.objective.flow_map:
            return True
        t = self.parts.ts[0]
        flow_map = self.parts.objective.denoiser(self.parts.diffusion, {}, None, self.parts.stage)
        try:
            check_known(flow_map.knows, t, t)  # pyright: ignore[reportFunctionMemberAccess]
        except ValueError:
            return False
        return True

    def denoiser(self, params: Params, cond: Cond = None) -> Denoiser | FlowMap:
        """The denoiser, or flow map, as it was trained."""
        parts, network = learned_parts(self.parts, params)
        return parts.denoiser(network, cond)

    def sampled_denoiser(
        self,
        params: Params,
        cond: Cond = None,
        *,
        sampler: OtherSampler | None = None,
        guidance: OtherGuidance | None = None,
        autoguidance: Callable[[Cond], Denoiser] | None = None,
    ) -> Denoiser | FlowMap:
        """The denoiser that samples are drawn with: guided, and with a threshold on x0_hat."""
        config, parts = self._changed(sampler, None, guidance)
        return self._guided(config, *trained_parts(config, parts, params), cond, autoguidance)

    def sample(
        self,
        params: Params,
        key: Key,
        index: Index,
        cond: Cond = None,
        *,
        sampler: OtherSampler | None = None,
        steps: int | None = None,
        guidance: OtherGuidance | None = None,
        autoguidance: Callable[[Cond], Denoiser] | None = None,
        known: Inpainting | None = None,
        ts: Grid | None = None,
    ) -> Sample:
        """Row i is sample index[i] of `sample_n`."""
        self._check_guidance(guidance, autoguidance)
        config, parts = self._changed(sampler, steps, guidance)
        parts, network = trained_parts(config, parts, params)
        parts = _with_steps(parts, known, ts)
        check_map_sampler(config, parts, parts.ts)
        denoiser = self._guided(config, parts, network, cond, autoguidance)
        x0 = _draw(key, parts, denoiser, self.samples.shape, jnp.asarray(index))
        # The last denoising moves what is known a little.
        return x0 if known is None else jnp.where(known.mask, known.y.astype(x0.dtype), x0)

    def nfe(
        self,
        *,
        sampler: OtherSampler | None = None,
        steps: int | None = None,
        guidance: OtherGuidance | None = None,
        autoguidance: Callable[[Cond], Denoiser] | None = None,
        known: Inpainting | None = None,
        ts: Grid | None = None,
    ) -> int:
        """Evaluations of the network for a sample: two for each of the denoiser where it is guided."""
        self._check_guidance(guidance, autoguidance)
        config, parts = self._changed(sampler, steps, guidance)
        parts = _with_steps(parts, known, ts)
        check_map_sampler(config, parts, parts.ts)
        samples_bound(config, self.samples, parts)
        pair = autoguidance is not None or (
            parts.null is not None and (config.guidance.scale != 1 or isinstance(parts.stepper, CFGpp))
        )
        each = 2 if pair and not parts.objective.flow_map else 1
        last = int(parts.stepper.final_denoise)
        return each * ((len(parts.ts) - 1) * parts.stepper.evaluations_per_step + last)

    def log_bound(
        self, params: Params, key: Key, x0: Sample, cond: Cond = None, *, index: Index | None = None
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """The log density along the probability flow: by an exact trace in few dimensions, else by one probe."""
        from diffjax.likelihood import Exact, adaptive
        from diffjax.likelihood._divergence import Hutchinson
        from diffjax.likelihood._flow import log_likelihood

        parts, network = learned_parts(self.parts, params)
        divergence = Exact() if math.prod(x0.shape[1:]) <= _EXACT else Hutchinson()
        given = {"index": index, "divergence": divergence, "controller": adaptive(1e-3)}
        found = log_likelihood(key, parts.process, parts.denoiser(network, cond), x0, **given)
        return found.nats, found.standard_error

    def encode(self, params: Params, key: Key, x0: Sample, cond: Cond = None, *, index: Index | None = None) -> Sample:
        """The latent [b, *d] that the probability flow takes x0 to; nothing is drawn."""
        from diffjax.likelihood import flow_encode

        parts, network = learned_parts(self.parts, params)
        return flow_encode(parts.process, parts.denoiser(network, cond), x0).latent

    def decode(self, params: Params, z: Sample, cond: Cond = None) -> Sample:
        """What the probability flow takes a latent to."""
        from diffjax.likelihood import flow_decode

        parts, network = learned_parts(self.parts, params)
        return flow_decode(parts.process, parts.denoiser(network, cond), z).x0

    def _change(
        self, sampler: OtherSampler | None, steps: int | None, guidance: OtherGuidance | None
    ) -> tuple[Config, Parts]:
        """Configuration and parts with another sampler, number of steps or guidance."""
        if sampler is None and steps is None and guidance is None:
            return self.config, self.parts
        chosen = changed(self.config.sampler, OtherSampler() if sampler is None else sampler)
        chosen = dataclasses.replace(chosen, steps=len(self.parts.ts) - 1 if steps is None else steps)
        guided = changed(self.config.guidance, OtherGuidance() if guidance is None else guidance)
        config = dataclasses.replace(self.config, sampler=chosen, guidance=guided)
        return config, rebuild_sampling(config, self.parts)

    def _check_guidance(self, guidance: OtherGuidance | None, autoguidance: Callable[[Cond], Denoiser] | None) -> None:
        """Raises `ValueError` for guidance that would have no effect."""
        given = {} if guidance is None else {name: value for name, value in vars(guidance).items() if value is not None}
        if self.parts.objective.flow_map:
            for name, value in {**given, **({} if autoguidance is None else {"autoguidance": True})}.items():
                raise ValueError(
                    f"guidance: this run is a flow map, which has its guidance built in, got {name} = {value}; "
                    "train, or distill, with another --guidance.scale"
                )
        if self.parts.null is None and autoguidance is None:
            for name, value in given.items():
                raise ValueError(f"guidance.{name}: this run knows no classes, got {value}")

    def _guided(
        self,
        config: Config,
        parts: Parts,
        network: Params,
        cond: Cond,
        autoguidance: Callable[[Cond], Denoiser] | None,
    ) -> Denoiser:
        weak = None if autoguidance is None else autoguidance(cond)
        bound = samples_bound(config, self.samples, parts)
        return build_denoiser(config, parts, parts.denoiser(network, cond), bound, weak)


def _with_steps(parts: Parts, known: Inpainting | None, ts: Grid | None) -> Parts:
    """With the method of inpainting, and with times of one's own, moved to where the process is finite."""
    if known is not None:
        parts = parts._replace(stepper=RePaint(known.mask, known.y, known.times))
    return parts if ts is None else parts._replace(ts=np.clip(ts, *parts.process.interval()))


def _draw(key: Key, parts: Parts, denoiser: Any, shape: tuple[int, ...], index: Index) -> Sample:
    """The samples of an index [n], as `sample_n` draws a chunk, on the mesh that the index is split over."""
    rows, rest = split_batch((denoiser, parts.stepper))
    dtype = jnp.result_type(float)
    planned = plan(parts.process, parts.stepper, parts.ts, dtype)
    parts.stepper.check_denoiser(denoiser, parts.process, *planned)
    shared = (rest, key, parts.process, *as_leaves(planned, dtype))
    return sample_chunk((rows, index), shared, tuple(shape), parts.stepper.final_denoise, _mesh_of(index))


def _mesh_of(index: Index) -> Mesh | None:
    """The mesh that an array [n] is split over; None where it is on one device, or traced."""
    sharding = index.sharding if is_concrete(index) else None
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None
