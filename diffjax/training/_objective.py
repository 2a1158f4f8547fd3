"""Objectives: losses, each with its optimiser and the parameters that it trains.

    params --of--> trained --+--> loss_fn(params, batch, context) --gradient in `trained` alone--> tx --> trained
             \\---> the rest -+

One objective trains a network. Several make a GAN (`of="g"`, `of="d"`) or an autoencoder with its critic. The frozen
teacher of a student is an entry of params that no objective trains: losses read it, checkpoints hold it once, and no
average covers it. The parameters that an objective does not train are None in the trees that its optimiser sees, as
`equinox.partition` makes them.

optax.multi_transform does something else: it gives groups of parameters an optimiser each for one gradient, where here
each objective has a gradient, an order and a rate of its own; and it passes on the gradients of what it does not train.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from diffjax._arrays import path_of
from diffjax._numbers import as_whole
from diffjax._typing import Key, Params, WholeNumber


class Context(NamedTuple):
    """What a loss may use besides parameters and batch.

    Attributes:
      key: the key [] of this update, equal on all devices; the noise of sample i is `fold_in(key, index[i])`.
      step: the number of the step, from 0, int32 [].
      ema: name -> params with the trained leaves [*d] replaced by this average, for averages that `make_train_step`
        was given by name. One that is not read is not gathered.
      index: the global index of each sample, int [b]; None counts them from 0.
      total: size of the whole batch, over all devices; None where it is this one.
      gather: a pytree of leaves [b, ...] to that of the whole batch, [total, ...]: under pmap from all devices, in the
        order of `index`; elsewhere its argument. For objectives that declare `whole_batch`.
    """

    key: Key
    step: WholeNumber = 0
    ema: Mapping[str, Params] = MappingProxyType({})
    index: Int[Array, " b"] | None = None
    total: int | None = None
    gather: Callable[[PyTree], PyTree] = lambda x: x


LossFn: TypeAlias = Callable[[Params, PyTree, Context], tuple[Array, Mapping[str, PyTree]]]
"""`(params, batch, context) -> (loss [], aux)`."""
Of: TypeAlias = str | Sequence[str] | Callable[[Params], PyTree] | None
"""Names of top-level entries of params, or a function to a tree of booleans; None: all of params."""


class Objective(NamedTuple):
    """A loss, its optimiser, and which parameters it trains.

    Attributes:
      loss_fn: `(params, batch, context) -> (loss, aux)`: the mean [] over the samples of a batch of leaves [b, ...],
        and a dict. `params` are whole, with the entries that other objectives train, or none does.
      tx: the optimiser; its gradients, clipping and state are those of the trained parameters only.
      of: which parameters are trained: the name of a top-level entry of params, several names, or a function of params
        to a tree of booleans, as optax's masks (`networks.trained` is one). None: all.
      times: updates per step; update j sees part j of the batch: the samples j, j + times, j + 2 times, ...
      every: updates are made at the steps (from 0) that `every` divides.
      name: prefix of its metrics, and key of its optimiser's state, where there are several objectives; by default
        `of`, where that is one name.
      whole_batch: True if the loss couples samples, by `context.gather`; its batch cannot be accumulated in parts.
    """

    loss_fn: LossFn
    tx: optax.GradientTransformation
    of: Of = None
    times: int = 1
    every: int = 1
    name: str | None = None
    whole_batch: bool = False


def as_objectives(objectives: Objective | Sequence[Objective]) -> dict[str, Objective]:
    """Name -> objective, in order; a single one needs no name.

    Raises:
      ValueError: there is none, a name is missing, repeated or invalid, `times` or `every` is below 1, or another field
        has another type.
      TypeError: the argument is something else than objectives.
    """
    several = tuple(objectives) if _is_several(objectives) else (objectives,)
    named: dict[str, Objective] = {}
    if not all(isinstance(objective, Objective) for objective in several):
        kinds = ", ".join(type(objective).__name__ for objective in several)
        raise TypeError(f"objectives: an Objective(loss_fn, tx) or several are needed, got {kinds}")
    for number, objective in enumerate(several):
        assert isinstance(objective, Objective)
        name = objective.of if objective.name is None and isinstance(objective.of, str) else objective.name
        if name is None and len(several) == 1:
            name = "loss"
        if not isinstance(name, str) or not name or "/" in name or name in named:
            taken = ", ".join(named) or "none"
            raise ValueError(f"name: objective {number} needs its own, without '/'; taken: {taken}; got {name!r}")
        _check_types(name, objective)
        for field in ("times", "every"):
            if (value := as_whole(f"{field} of objective {name}", getattr(objective, field))) < 1:
                raise ValueError(f"{field}: of objective {name}, at least 1 is needed, got {value}")
        named[name] = objective
    if not named:
        raise ValueError("objectives: at least one is needed, got none")
    return named


def _is_several(objectives: object) -> TypeGuard[Sequence[Objective]]:
    """True for a list or tuple that is not itself an objective, which is a tuple, too."""
    return isinstance(objectives, list | tuple) and not isinstance(objectives, Objective)


def _check_types(name: str, objective: Objective) -> None:
    """Raises `ValueError` where a field of an objective has another type than it declares."""
    loss_fn, tx, of = objective.loss_fn, objective.tx, objective.of
    names = isinstance(of, list | tuple | set | frozenset) and all(isinstance(entry, str) for entry in of)
    for field, valid, needed in (
        ("loss_fn", callable(loss_fn), "a function (params, batch, context) -> (loss, aux)"),
        ("tx", hasattr(tx, "init") and hasattr(tx, "update"), "an optimiser of optax"),
        ("of", of is None or isinstance(of, str) or callable(of) or names, "a name, names or a function of params"),
    ):
        if not valid:
            raise ValueError(f"{field}: of objective {name}, {needed} is needed, got {getattr(objective, field)!r}")


def check_average_names(names: Iterable[str]) -> None:
    """Raises `ValueError` where the names of averages are not several different strings without '/'."""
    several = [] if isinstance(names, str) else list(names)
    valid = all(isinstance(name, str) and name and "/" not in name for name in several)
    if isinstance(names, str) or not valid or len(set(several)) < len(several):
        raise ValueError(f"averages: different names without '/' are needed, such as ('sampling',), got {names!r}")


def checked_output(name: str, output: PyTree) -> tuple[Array, Mapping[str, PyTree]]:
    """(loss [], aux) of the `loss_fn` of an objective, if its output is that.

    Raises:
      ValueError: it is something else, or aux has a metric under a name that the step uses.
    """
    several = output if isinstance(output, tuple | list) else [output]
    if len(several) != 2 or not isinstance(several[1], Mapping):
        got = ", ".join("an array" if isinstance(part, jax.Array) else type(part).__name__ for part in several)
        raise ValueError(f"loss_fn: of objective {name}, (loss, aux) with a dict aux is needed, got {got}")
    loss, aux = several
    if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        got = f"{jnp.result_type(loss)} {jnp.shape(loss)}"
        raise ValueError(f"loss_fn: of objective {name}, the loss must be a floating-point scalar, got {got}")
    if taken := sorted(RESERVED & aux.keys()):
        raise ValueError(f"aux: of objective {name}, {taken[0]!r} is a metric of the step itself; rename it")
    return loss, aux


RESERVED = {"loss", "grad_norm", "skipped", "due", "loss_by_level", "count_by_level"}
"""Metrics that a train step makes."""


def trained_mask(objective: Objective, params: Params) -> PyTree:
    """A bool for each parameter, a tree of the structure of `params`: True where the objective trains it.

    Raises:
      ValueError: params have no entry of that name, nothing is trained, or a trained leaf is not of floating-point
        numbers.
    """
    of = objective.of
    if of is None:
        mask = jax.tree.map(lambda _: True, params)
    elif callable(of):
        mask = jax.tree.broadcast(of(params), params)
        if not all(isinstance(leaf, bool | np.bool_) for leaf in jax.tree.leaves(mask)):
            raise ValueError("of: the function must return a tree of booleans, one for each parameter")
        mask = jax.tree.map(bool, mask)
    else:
        names = {of} if isinstance(of, str) else set(of)
        top = lambda path: jax.tree_util.keystr(path[:1], simple=True)
        entries = dict.fromkeys(top(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
        if unknown := sorted(names - entries.keys()):
            raise ValueError(f"of: params have no entry {unknown[0]!r}; they have {', '.join(entries)}")
        mask = jax.tree_util.tree_map_with_path(lambda path, _: top(path) in names, params)
    if not any(jax.tree.leaves(mask)):
        raise ValueError(f"of: an objective must train something, got {of!r}, which fits no parameter")
    for (path, leaf), trains in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(mask), strict=True):
        if trains and not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            where, kind = path_of(path), jnp.result_type(leaf)
            raise ValueError(f"of: {where} is {kind} and cannot be trained; leave it out, by names or a mask")
    return mask


def split_frozen(masks: Sequence[PyTree], params: Params) -> tuple[Params, Params]:
    """(the parameters that some objective trains, the rest): each with None in the place of the other's leaves."""
    return eqx.partition(params, jax.tree.map(lambda *trained: any(trained), *masks))


def projected(tx: optax.GradientTransformation, project: Callable[[Params], Params]) -> optax.GradientTransformation:
    """`tx`, followed by a projection, so that parameters are on a set after every update.

        params --tx--> params + updates --project--> new params;    the updates returned are new - old

    EDM2's forced weight normalisation is `projected(tx, networks.normalise_weights)`.

    Args:
      tx: an optimiser.
      project: `params -> params`, trees of arrays [*d] of the same shapes, such as a projection onto a set of weights.

    Returns:
      An optimiser with the state of `tx`.

    Example:
      >>> tx = projected(optax.sgd(1.0), lambda params: jnp.maximum(params, 0))
      >>> tx.update(jnp.asarray(3.0), tx.init(jnp.asarray(1.0)), jnp.asarray(1.0))[0]
      Array(-1., dtype=float32)

    Source: projected gradient descent (Bertsekas 1999, section 2.3).
    """

    def update(updates: Params, state: optax.OptState, params: PyTree = None) -> tuple[Params, optax.OptState]:
        updates, state = tx.update(updates, state, params)
        after = project(optax.apply_updates(params, updates))
        return jax.tree.map(lambda new, old: new - old, after, params), state

    return optax.GradientTransformation(tx.init, update)
