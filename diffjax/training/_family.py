"""A family of generative models, as one record of pure functions.

             init                 objectives                        sample, log_bound, encode, decode, denoiser
    key --------------> params --------------> trained params ------------------------------------------------>

Diffusion is one, a flow map, a variational autoencoder, a normalizing flow, a GAN: what trains, samples and measures
them knows nothing else of them. The functions of a family hold no state; what they need beyond their arguments, such as
the shape of a sample, is fixed where the family is made.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

from jaxtyping import Array, Float

from diffjax._typing import Cond, Denoiser, FlowMap, Key, Params, Sample
from diffjax.training._objective import Objective

LikelihoodKind: TypeAlias = Literal["exact", "flow", "bound"]


class Family(NamedTuple):
    """What a family of models offers; a field is None where it has no such thing.

    x0 are samples [b, *d], cond is a pytree of leaves [b, ...] or None, params are whole, as `init` makes them; trained
    leaves may be replaced by their averages. Randomness of sample i comes from `fold_in(key, index[i])`: a sample
    depends neither on the others nor on how many are drawn at a time.

    Attributes:
      init: `(key, x0, cond) -> params`, for data and conditions of these shapes. Where several objectives train
        different parts, params are a dict of what they name, such as {"g": ..., "d": ...}.
      objectives: what one train step minimises, in order; see `make_train_step`.
      sample: `(params, key, index [n], cond, **options) -> x0 [n, *d]`, sample i being a function of key, index[i] and
        cond[i]. A jitted entry point, called with index and cond split over the devices of a mesh, and params on each.
      options: names of the options that `sample` and `nfe` take; None, the default of each, leaves the model's own.
      nfe: `(**options) -> int`, network evaluations for a sample; options that do not fit are a `ValueError` here,
        before anything is drawn.
      log_bound: `(params, key, x0, cond, *, index=None) -> (nats [b], standard_error [b])`: log p(x0 | cond), or a
        lower bound of it, in nats, and the standard error of each as an estimate: 0 where nothing is estimated, NaN
        where it is not known. index [b] counts x0 globally.
      likelihood_kind: what log_bound is: "exact"; "flow", integrated along a flow by a solver; or "bound".
      tighter_bounds: name -> a function like log_bound, for a lower bound that is nearer to log p(x0 | cond).
      discrete: whether log_bound is of a probability, x0 being on levels, and of no density: -nats/(d log 2) are then
        bits per dimension.
      encode: `(params, key, x0, cond, *, index=None) -> z`, a pytree of latents with leaves [b, ...]; index [b] counts
        x0 globally.
      decode: `(params, z, cond) -> x0`.
      denoiser: `(params, cond) -> Denoiser` or `FlowMap`, by which guidance, likelihood and inverse problems of
        diffusion go on.

    Example:
      The normal distribution of a mean that is learned:

      >>> import jax, jax.numpy as jnp, optax
      >>> from diffjax.training import Family, Objective
      >>> def log_density(params, key, x0, cond, *, index=None):
      ...     nats = jnp.sum(jax.scipy.stats.norm.logpdf(x0, params["mean"]), axis=1)
      ...     return nats, jnp.zeros_like(nats)
      >>> def loss(params, batch, context):
      ...     x0, cond = batch
      ...     return -jnp.mean(log_density(params, context.key, x0, cond)[0]), {}
      >>> def sample(params, key, index, cond):
      ...     keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
      ...     return params["mean"] + jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
      >>> family = Family(
      ...     init=lambda key, x0, cond: {"mean": jnp.zeros(x0.shape[1:])},
      ...     objectives=(Objective(loss, optax.adam(1e-2)),),
      ...     sample=sample,
      ...     log_bound=log_density,
      ...     likelihood_kind="exact",
      ... )
      >>> params = family.init(jax.random.key(0), jnp.zeros((1, 2)), None)
      >>> family.sample(params, jax.random.key(1), jnp.arange(3), None).shape
      (3, 2)
    """

    init: Callable[[Key, Sample, Cond], Params]
    objectives: tuple[Objective, ...]
    sample: Callable[..., Sample]
    options: frozenset[str] = frozenset()
    nfe: Callable[..., int] = lambda: 1
    log_bound: Callable[..., tuple[Float[Array, " b"], Float[Array, " b"]]] | None = None
    likelihood_kind: LikelihoodKind | None = None
    tighter_bounds: Mapping[str, Callable[..., tuple[Float[Array, " b"], Float[Array, " b"]]]] = MappingProxyType({})
    discrete: bool = False
    encode: Callable[..., Params] | None = None
    decode: Callable[[Params, Params, Cond], Sample] | None = None
    denoiser: Callable[[Params, Cond], Denoiser | FlowMap] | None = None


def check_options(name: str, family: Family, given: Iterable[str]) -> None:
    """Raises `ValueError` for the first option that a family does not name, with those that it does.

    Args:
      name: of the family.
      family: which names its options.
      given: options as they were typed; "sampler.eta" is one of "sampler".

    Example:
      >>> family = Family(init=None, objectives=(), sample=None, options=frozenset({"steps"}))
      >>> check_options("toy", family, ["steps", "temperature"])
      Traceback (most recent call last):
      ...
      ValueError: temperature: family toy has no such option; it has steps
    """
    for option in given:
        if option.partition(".")[0] not in family.options:
            has, why = ", ".join(sorted(family.options)) or "none", ""
            if option == "steps":
                n = family.nfe()
                why = f", as its samples always take {n} network evaluation{'s' if n > 1 else ''}"
            raise ValueError(f"{option}: family {name} has no such option{why}; it has {has}")
