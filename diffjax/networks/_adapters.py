"""Adapters: a module of Flax Linen, Flax NNX or Equinox becomes a `Network`, two pure functions.

    init (key, x [b, *d], c_noise [b], cond) -> params               an ordinary tree of arrays
    apply(params, x, c_noise, cond, *, key=None) -> y [b, *d]        key: training, dropout on; None: deterministic

Only parameters are kept between calls. A module with other state of its own (batch norm's running averages, say) has
no place in a pure `apply`, and is refused by name.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.errors import InvalidRngError

from diffjax._typing import Network
from diffjax.networks._init import draw_together

if TYPE_CHECKING:
    from flax import nnx


def from_linen(module: nn.Module) -> Network:
    """A network from a Linen module.

    Args:
      module: is called as `module(x [b, *d], c_noise [b], cond)`, cond being None where there is no condition. If its
        `__call__` has an argument `deterministic`, it is given: False where there is a key, True otherwise; so is
        `train` (or `training`, `is_training`), the other way round. Dropout draws from the collection "dropout"; a
        module may draw from others, by `make_rng("noise")`, where there is a key.

    Returns:
      A network whose parameters are the module's "params" collection, a dict of dicts of arrays.

    Raises:
      ValueError: at `init`, when the module has variables other than parameters; at `apply`, when it draws random
        numbers and is given no key.
    """
    given = list(inspect.signature(type(module).__call__).parameters.values())
    options = [p.name for i, p in enumerate(given) if i > 3 or p.kind is p.KEYWORD_ONLY]  # after self, x, c_noise, cond
    off, on = (set(options) & names for names in ({"deterministic"}, {"train", "training", "is_training"}))
    draws_more: list[bool] = []

    def switch(key) -> dict[str, Any]:
        return dict.fromkeys(off, key is None) | dict.fromkeys(on, key is not None)

    def raw(key, x, c_noise, cond):
        variables = nn.meta.unbox(module.init(key, x, c_noise, cond, **switch(None)))
        others = sorted(set(variables) - {"params"})
        _refuse(module, [f"collection {name!r}" for name in others], "batch_stats" in others)
        return variables.get("params", {})

    def init(key, x, c_noise, cond=None):
        return draw_together(raw, key, x, c_noise, cond)

    def apply(params, x, c_noise, cond=None, *, key=None):
        run = lambda rngs: module.apply({"params": params}, x, c_noise, cond, rngs=rngs, **switch(key))
        rngs = {} if key is None else {"dropout": key}
        try:
            if key is None or not draws_more:
                return run(rngs)
        except InvalidRngError as error:
            if key is None:
                raise ValueError(f"key: {type(module).__name__} draws random numbers and needs one: {error}") from error
            draws_more.append(True)  # and not to be run twice again
        # Linen draws from "params" for a collection that has no key.
        return run(rngs | {"params": jax.random.fold_in(key, 0)})

    return Network(init, apply)


def from_nnx(build: "Callable[[nnx.Rngs], nnx.Module]") -> Network:
    """A network from an NNX module.

    Args:
      build: makes the module from its generators, `build(nnx.Rngs(key))`; the module is called as
        `module(x [b, *d], c_noise [b], cond)`. With a key the module is put in training mode (`module.train()`) and
        every generator in it gets a key of its own, folded from that key; without, it is in evaluation mode. Arrays
        that are plain attributes are constants, as `build(nnx.Rngs(0))` makes them: they do not train.

    Returns:
      A network whose parameters are a flat dict from path ("layers.0.kernel") to array. Plain arrays in, plain arrays
      out: no `nnx.jit`, which costs milliseconds a call.

    Raises:
      ValueError: the module has variables that are neither parameters nor random generators.
    """
    from flax import nnx  # a third of a second, for those who use it

    places: list[tuple[tuple, str]] = []

    def without_constants():
        module = build(nnx.Rngs(0))
        places[:] = _array_attributes(module)
        for path, name in places:
            setattr(_node_at(module, path), name, None)
        return module

    def constants_alone():
        module = build(nnx.Rngs(0))
        return [getattr(_node_at(module, path), name) for path, name in places]

    graph, params, random, rest = nnx.split(nnx.eval_shape(without_constants), nnx.Param, nnx.RngState, ...)
    state = nnx.to_flat_state(rest)
    others = [f"{_dotted(path)} ({type(leaf).__name__})" for path, leaf in state]
    _refuse(build, others, any(isinstance(leaf, nnx.BatchStat) for _, leaf in state))
    with jax.ensure_compile_time_eval():  # of the program, the compiler leaves out whatever only parameters need
        constants = jax.jit(constants_alone)() if places else []
    param_slots, random_slots = nnx.to_flat_state(params), nnx.to_flat_state(random)

    def init(key, x, c_noise, cond=None):
        state = nnx.split(build(nnx.Rngs(_typed(key))), nnx.Param, ...)[1]
        return {_dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}

    def apply(params, x, c_noise, cond=None, *, key=None):
        root = jax.random.key(0) if key is None else _typed(key)  # never drawn from when deterministic

        def drawn(i, slot):
            shape = slot.get_value().shape  # not (): one for each of the layers that `nnx.vmap` made
            if not isinstance(slot, nnx.RngKey):
                return jnp.zeros(shape, jnp.uint32)
            key = jax.random.fold_in(root, i)
            return jax.random.split(key, shape) if shape else key

        keys = [(path, slot.replace(drawn(i, slot))) for i, (path, slot) in enumerate(random_slots)]
        values = [(path, slot.replace(params[_dotted(path)])) for path, slot in param_slots]
        module = nnx.merge(graph, nnx.from_flat_state(values), nnx.from_flat_state(keys))
        for (path, name), constant in zip(places, constants, strict=True):
            setattr(_node_at(module, path), name, nnx.data(constant))
        module.eval() if key is None else module.train()
        return module(x, c_noise, cond)  # pyright: ignore[reportCallIssue]

    return Network(init, apply)


def from_equinox(build: Callable[[Any], eqx.Module]) -> Network:
    """A network from an Equinox module, which acts on one sample and is vmapped here.

    Args:
      build: makes the module, `build(key)`; the module is called as `module(x [*d], c_noise [], cond, key=key)`, where
        cond is one sample's condition or None. With a key, the module is in training mode and each sample has a key of
        its own; without, it is in inference mode and `key` is None.

    Returns:
      A network whose parameters are a flat dict from path ("layers.0.weight") to array: every floating-point JAX array
      of the module. NumPy arrays are constants, as they are to Equinox.

    Raises:
      ValueError: the module has state (`eqx.nn.State`) or arrays that are not floating-point.
    """
    fixed: list[Any] = []

    def noted(key):
        made = build(key)
        is_fixed = lambda leaf: isinstance(leaf, np.ndarray | np.generic)
        fixed[:] = [leaf if is_fixed(leaf) else None for leaf in jax.tree.leaves(made, is_leaf=_is_state)]
        return made

    abstract = eqx.filter_eval_shape(noted, jax.eval_shape(lambda: jax.random.key(0)))
    leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract, is_leaf=_is_state)
    leaves = [(path, leaf if value is None else value) for (path, leaf), value in zip(leaves, fixed, strict=True)]
    slots = [_equinox_path(path) if _is_parameter(leaf) else None for path, leaf in leaves]
    unfit = [f"{_equinox_path(p)} ({type(leaf).__name__})" for p, leaf in leaves if _is_unfit(leaf)]
    is_norm = lambda node: isinstance(node, eqx.nn.BatchNorm)
    _refuse(build, unfit, any(map(is_norm, jax.tree.leaves(abstract, is_leaf=is_norm))))

    def init(key, x, c_noise, cond=None):
        values = jax.tree.leaves(build(key))
        return {name: value for name, value in zip(slots, values, strict=True) if name is not None}

    def apply(params, x, c_noise, cond=None, *, key=None):
        values = [leaf if name is None else params[name] for name, (_, leaf) in zip(slots, leaves, strict=True)]
        module: Any = eqx.nn.inference_mode(jax.tree.unflatten(treedef, values), key is None)
        keys = None if key is None else jax.random.split(key, x.shape[0])
        return jax.vmap(lambda x, c, cond, key: module(x, c, cond, key=key))(x, c_noise, cond, keys)

    return Network(init, apply)


def _refuse(module, others, batch_norm):
    if others:
        advice = "GroupNorm or LayerNorm in place of BatchNorm" if batch_norm else "parameters and constants are kept"
        raise ValueError(
            f"module: a network keeps parameters only, but {module!r} also has {', '.join(others)}; "
            f"use a layer without state ({advice})"
        )


def _array_attributes(module):
    """(path, name) of each array that is an attribute of a node of an NNX module, and no variable."""
    from flax import nnx

    is_array = lambda value: isinstance(value, jax.Array | np.ndarray)
    nodes = [(path, node) for path, node in nnx.iter_graph(module) if isinstance(node, nnx.Pytree)]
    return [
        (path, name)
        for path, node in nodes
        if not isinstance(node, nnx.Variable)
        for name, value in vars(node).items()
        if is_array(value)
    ]


def _node_at(module, path):
    for part in path:
        module = module[part] if isinstance(part, int) else getattr(module, part)
    return module


def _dotted(path):
    return ".".join(map(str, path))


def _equinox_path(path):
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_parameter(leaf):
    return isinstance(leaf, jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_state(node):
    return isinstance(node, eqx.nn.StateIndex)


def _is_unfit(leaf):
    is_array = isinstance(leaf, jax.ShapeDtypeStruct | jax.Array)
    return _is_state(leaf) or (is_array and not _is_parameter(leaf))


def _typed(key):
    """A key with a key dtype, also from two raw integers, which NNX does not take."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
