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
from flax import linen as nn

from diffjax._typing import Network
from diffjax.networks._init import draw_together

if TYPE_CHECKING:
    from flax import nnx


def from_linen(module: nn.Module) -> Network:
    """A network from a Linen module.

    Args:
      module: is called as `module(x [b, *d], c_noise [b], cond)`, cond being None where there is no condition. If its
        `__call__` has an argument `deterministic`, it is given: False where there is a key, True otherwise. Dropout
        draws from the collection "dropout".

    Returns:
      A network whose parameters are the module's "params" collection, a dict of dicts of arrays.

    Raises:
      ValueError: at `init`, when the module has variables other than parameters.
    """
    takes_switch = "deterministic" in inspect.signature(type(module).__call__).parameters

    def switch(key) -> dict[str, Any]:
        return {"deterministic": key is None} if takes_switch else {}

    def raw(key, x, c_noise, cond):
        variables = nn.meta.unbox(module.init(key, x, c_noise, cond, **switch(None)))
        _refuse(module, [f"collection {name!r}" for name in sorted(set(variables) - {"params"})])
        return variables.get("params", {})

    def init(key, x, c_noise, cond=None):
        return draw_together(raw, key, x, c_noise, cond)

    def apply(params, x, c_noise, cond=None, *, key=None):
        rngs = {} if key is None else {"dropout": key}
        return module.apply({"params": params}, x, c_noise, cond, rngs=rngs, **switch(key))

    return Network(init, apply)


def from_nnx(build: "Callable[[nnx.Rngs], nnx.Module]") -> Network:
    """A network from an NNX module.

    Args:
      build: makes the module from its generators, `build(nnx.Rngs(key))`; the module is called as
        `module(x [b, *d], c_noise [b], cond)`. With a key the module is put in training mode (`module.train()`) and
        every generator in it gets a key of its own, folded from that key; without, it is in evaluation mode.

    Returns:
      A network whose parameters are a flat dict from path ("layers.0.kernel") to array. Plain arrays in, plain arrays
      out: no `nnx.jit`, which costs milliseconds a call.

    Raises:
      ValueError: the module has variables that are neither parameters nor random generators.
    """
    from flax import nnx  # a third of a second, for those who use it

    graph, params, random, rest = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param, nnx.RngState, ...)
    _refuse(build, [f"{_dotted(path)} ({type(leaf).__name__})" for path, leaf in nnx.to_flat_state(rest)])
    param_slots, random_slots = nnx.to_flat_state(params), nnx.to_flat_state(random)

    def init(key, x, c_noise, cond=None):
        state = nnx.split(build(nnx.Rngs(_typed(key))), nnx.Param, ...)[1]
        return {_dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}

    def apply(params, x, c_noise, cond=None, *, key=None):
        root = jax.random.key(0) if key is None else _typed(key)  # never drawn from when deterministic
        keys = [
            (path, slot.replace(jax.random.fold_in(root, i) if isinstance(slot, nnx.RngKey) else jnp.uint32(0)))
            for i, (path, slot) in enumerate(random_slots)
        ]
        values = [(path, slot.replace(params[_dotted(path)])) for path, slot in param_slots]
        module = nnx.merge(graph, nnx.from_flat_state(values), nnx.from_flat_state(keys))
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
      A network whose parameters are a flat dict from path ("layers.0.weight") to array: every floating-point array of
      the module.

    Raises:
      ValueError: the module has state (`eqx.nn.State`) or arrays that are not floating-point.
    """
    abstract = eqx.filter_eval_shape(build, jax.eval_shape(lambda: jax.random.key(0)))
    leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract, is_leaf=_is_state)
    slots = [_equinox_path(path) if _is_parameter(leaf) else None for path, leaf in leaves]
    unfit = [f"{_equinox_path(p)} ({type(leaf).__name__})" for p, leaf in leaves if _is_unfit(leaf)]
    _refuse(build, unfit)

    def init(key, x, c_noise, cond=None):
        values = jax.tree.leaves(build(key))
        return {name: value for name, value in zip(slots, values, strict=True) if name is not None}

    def apply(params, x, c_noise, cond=None, *, key=None):
        values = [leaf if name is None else params[name] for name, (_, leaf) in zip(slots, leaves, strict=True)]
        module: Any = eqx.nn.inference_mode(jax.tree.unflatten(treedef, values), key is None)
        keys = None if key is None else jax.random.split(key, x.shape[0])
        return jax.vmap(lambda x, c, cond, key: module(x, c, cond, key=key))(x, c_noise, cond, keys)

    return Network(init, apply)


def _refuse(module, others):
    if others:
        raise ValueError(
            f"module: a network keeps parameters only, but {module!r} also has {', '.join(others)}; "
            "use a layer without state (GroupNorm or LayerNorm in place of BatchNorm)"
        )


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
