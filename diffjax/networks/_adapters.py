"""Adapters: a module of Flax Linen, Flax NNX or Equinox becomes a `Network`, two pure functions.

    init (key, x [b, *d], c_noise [b], cond) -> params               an ordinary tree of arrays
    apply(params, x, c_noise, cond, *, key=None) -> y [b, *d]        key: training, dropout on; None: deterministic

c_noise reaches the module as it is given: [b], or [b, 2] = the clock at t and at s for a few-step model, which a module
of your own has to use by itself (ours do: `with_second_time`).

Only parameters are kept between calls. A module with other state (batch norm's running averages, say) cannot be a pure
`apply`, and is refused by name.
"""

import dataclasses
import inspect
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.errors import InvalidRngError
from jaxtyping import Array

from diffjax._typing import Cond, Key, Network, Params, Sample
from diffjax.networks._init import draw_parameters

if TYPE_CHECKING:
    from flax import nnx

LinenModule: TypeAlias = nn.Module


def from_linen(module: nn.Module) -> Network:
    """A network from a Linen module.

    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> from diffjax import networks
    >>> network = dj.from_linen(networks.MLP(width=16, depth=1))
    >>> x, c_noise = jnp.zeros((4, 2)), jnp.zeros(4)
    >>> params = network.init(jax.random.key(0), x, c_noise, None)
    >>> network.apply(params, x, c_noise, None).shape
    (4, 2)

    Args:
      module: is called as `module(x [b, *d], c_noise [b], cond)`, cond being None where there is no condition. A module
        that takes c_noise [b, 2] too may have more parameters then, for `with_second_time`. If its
        `__call__` has an argument `deterministic`, it is given: False where there is a key, True otherwise; so is
        `train` (or `training`, `is_train`, `is_training`), the other way round. Dropout draws from the collection
        "dropout"; a module may draw from others, by `make_rng("noise")`, where there is a key.

    Returns:
      A network whose parameters are the module's "params" collection, a dict of dicts of arrays. Its `init` makes
      those of our modules from one random draw, without running the network (`draw_parameters`); a module with other
      initialisers, such as a plain `nn.Dense`, is initialised by its own, slower, `init`, compiled. Networks of equal
      modules are equal, so that one built anew compiles nothing; where a field of the module has no hash (a list, an
      array) they are equal if the module is the same object.

    Raises:
      ValueError: module is something else; at `init`, when it has variables other than parameters; at `apply`, when it
        draws random numbers and is given no key, or when it is given one and only an argument of another name, such as
        `enable_dropout` or `mode="eval"`, would turn its dropout on.
    """
    if not isinstance(module, nn.Module):
        got = module.__name__ if isinstance(module, type) else type(module).__name__
        raise ValueError(f"module: a Linen module, such as networks.MLP(), is needed, got {got}")
    return Network(_LinenInit(module), _LinenApply(module))


_OFF, _ON = {"deterministic"}, {"train", "training", "is_train", "is_training"}


class _OfLinen:
    """A function of a module, equal to that of an equal module, or of the same one where it cannot be hashed."""

    def __init__(self, module: nn.Module):
        self.module = module
        given = list(inspect.signature(type(module).__call__).parameters.values())
        # After self, x, c_noise, cond.
        options = {p.name: p.default for i, p in enumerate(given) if i > 3 or p.kind is p.KEYWORD_ONLY}
        self.off, self.on = options.keys() & _OFF, options.keys() & _ON
        self.others = {
            name: default
            for name, default in options.items()
            if name not in _OFF | _ON and (isinstance(default, str) or (isinstance(default, int) and default in (0, 1)))
        }
        self.draws_more = False
        self.of: Hashable = module, _kinds(module)
        try:
            hash(module)
        except TypeError:  # a list or an array in its fields
            self.of = id(module)
        self.hash = hash((type(self), self.of))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.of == other.of

    def __hash__(self) -> int:
        return self.hash

    def switch(self, key: Key | None) -> dict[str, Any]:
        return dict.fromkeys(self.off, key is None) | dict.fromkeys(self.on, key is not None)


def _kinds(value: nn.Module) -> tuple:
    """The types of a module's fields, and of the modules inside it, to tell apart fields that are equal in Python and
    may compute other things: 1, 1.0 and True, 0.0 and -0.0."""
    leaves = jax.tree.leaves(
        [getattr(value, field.name) for field in dataclasses.fields(value) if field.name != "parent"]
    )
    kind = lambda leaf: _kinds(leaf) if isinstance(leaf, nn.Module) else repr(leaf) if isinstance(leaf, float) else None
    return tuple((type(leaf), kind(leaf)) for leaf in leaves)


class _LinenInit(_OfLinen):
    def __call__(self, key: Key, x: Sample, c_noise: Array, cond: Cond = None) -> Params:
        return draw_parameters(key, _LinenRawInit(self.module), x, c_noise, cond)


class _LinenRawInit(_OfLinen):
    def __call__(self, key: Key, x: Sample, c_noise: Array, cond: Cond) -> Params:
        variables = nn.meta.unbox(self.module.init(key, x, c_noise, cond, **self.switch(None)))
        others = sorted(set(variables) - {"params"})
        _refuse(self.module, [f"collection {name!r}" for name in others], "batch_stats" in others)
        return variables.get("params", {})


class _LinenApply(_OfLinen):
    def __call__(self, params: Params, x: Sample, c_noise: Array, cond: Cond = None, *, key: Key | None = None) -> Any:
        run = lambda rngs: self.module.apply({"params": params}, x, c_noise, cond, rngs=rngs, **self.switch(key))
        rngs = {} if key is None else {"dropout": key}
        if key is not None and self.others:
            self.refuse_silent_dropout(params, x, c_noise, cond, key)
        try:
            if key is None or not self.draws_more:
                return run(rngs)
        except InvalidRngError as error:
            if key is None:
                name = type(self.module).__name__
                raise ValueError(f"key: {name} draws random numbers and needs one: {error}") from error
            self.draws_more = True  # and not to be run twice again
        # Linen draws from "params" for a collection that has no key.
        return run(rngs | {"params": jax.random.fold_in(key, 0)})

    def refuse_silent_dropout(self, params: Params, x: Sample, c_noise: Array, cond: Cond, key: Key) -> None:
        """Raises `ValueError` where no dropout is drawn in training, but is with another value of one of `others`."""

        def has_dropout(**other: Any) -> bool:
            flags: dict[str, Any] = self.switch(key) | other
            run = lambda *args: self.module.apply({"params": params}, *args, **flags)
            try:
                jax.eval_shape(run, x, c_noise, cond)
            except InvalidRngError as error:
                return '"dropout"' in str(error)
            except Exception:  # with other values of an option the module may need other arguments
                return False
            return False

        others, self.others = self.others, {}  # once is enough
        if has_dropout():
            return
        changed = {option: _other(default) for option, default in others.items()}
        if wrong := [option for option, value in changed.items() if has_dropout(**{option: value})]:
            self.others = others
            name, option = type(self.module).__name__, wrong[0]
            value, default = changed[option], others[option]
            switch = (
                "train" if value is True else "not train" if value is False else f"{value!r} if train else {default!r}"
            )
            raise ValueError(
                f"module: {name} has no dropout in training unless {option}={value!r}, and `from_linen` sets only "
                f"{', '.join(sorted(_OFF | _ON))}; wrap it in a module with "
                f"`__call__(self, x, c_noise, cond, train=False)` that calls it with {option}={switch}"
            )


def _other(value: Any) -> Any:
    """What a switch may stand at instead: False for True, 1 for 0, "train" for any other word."""
    return ("eval" if value == "train" else "train") if isinstance(value, str) else type(value)(not value)


def from_nnx(build: "Callable[[nnx.Rngs], nnx.Module]") -> Network:
    """A network from an NNX module.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> import diffjax as dj
    >>> class Linear(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.layer = nnx.Linear(3, 2, rngs=rngs)
    ...     def __call__(self, x, c_noise, cond):
    ...         return self.layer(jnp.append(x, c_noise[:, None], axis=1))
    >>> network, x = dj.from_nnx(Linear), jnp.zeros((4, 2))
    >>> params = network.init(jax.random.key(0), x, jnp.zeros(4), None)
    >>> network.apply(params, x, jnp.zeros(4), None).shape
    (4, 2)

    Args:
      build: makes the module from its generators, `build(nnx.Rngs(key))`; the module is called as
        `module(x [b, *d], c_noise [b], cond)`; it is made before c_noise is seen, so its parameters are the same with a
        c_noise [b, 2], and `with_second_time` has none to add. With a key the module is put in training
        mode (`module.train()`) and every generator in it gets another key, folded from that key; without, it is in
        evaluation mode. Arrays that are no variables (attributes, or in their lists and dicts) are constants, as
        `build(nnx.Rngs(0))` makes them: they do not train.

    Returns:
      A network whose parameters are a flat dict from path ("layers.0.kernel") to array. Plain arrays in, plain arrays
      out: no `nnx.jit`, which costs milliseconds a call.

    Raises:
      ValueError: the module has variables that are neither parameters nor random generators.
    """
    from flax import nnx  # a third of a second, for those who use it

    parts = lambda: nnx.split(_with_arrays_as_data(build(nnx.Rngs(0))), nnx.Param, nnx.RngState, ...)
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)
    arrays = lambda state: [(path, leaf) for path, leaf in nnx.to_flat_state(state) if not is_variable(leaf)]
    graph, params, random, rest = jax.eval_shape(parts)
    others = [(path, leaf) for path, leaf in nnx.to_flat_state(rest) if is_variable(leaf)]
    names = [f"{_dotted(path)} ({type(leaf).__name__})" for path, leaf in others]
    _refuse(build, names, any(isinstance(leaf, nnx.BatchStat) for _, leaf in others))
    places = [path for path, _ in arrays(rest)]
    with jax.ensure_compile_time_eval():  # of the program, the compiler leaves out whatever only parameters need
        values = jax.jit(lambda: [leaf for _, leaf in arrays(parts()[-1])])() if places else []
    constants = nnx.from_flat_state(list(zip(places, values, strict=True)))
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
        module = nnx.merge(graph, nnx.from_flat_state(values), nnx.from_flat_state(keys), constants)
        module.eval() if key is None else module.train()
        return module(x, c_noise, cond)  # pyright: ignore[reportCallIssue]

    return Network(init, apply)


def from_equinox(build: Callable[[Key], eqx.Module]) -> Network:
    """A network from an Equinox module, which acts on one sample and is vmapped here.

    >>> import equinox as eqx
    >>> import jax, jax.numpy as jnp
    >>> import diffjax as dj
    >>> class Linear(eqx.Module):
    ...     layer: eqx.nn.Linear
    ...     def __init__(self, key):
    ...         self.layer = eqx.nn.Linear(3, 2, key=key)
    ...     def __call__(self, x, c_noise, cond, *, key=None):
    ...         return self.layer(jnp.append(x, c_noise))
    >>> network, x = dj.from_equinox(Linear), jnp.zeros((4, 2))
    >>> params = network.init(jax.random.key(0), x, jnp.zeros(4), None)
    >>> network.apply(params, x, jnp.zeros(4), None).shape
    (4, 2)

    Args:
      build: makes the module, `build(key)`; the module is called as `module(x [*d], c_noise [], cond, key=key)`, where
        cond is one sample's condition or None; c_noise is [2] where the network is given [b, 2], and the parameters are
        the same, so that `with_second_time` has none to add. With a key, the module is in training mode and each sample
        has another key; without, it is in inference mode and `key` is None.

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
        advice = (
            "GroupNorm or LayerNorm in place of BatchNorm" if batch_norm else "parameters and constants are allowed"
        )
        raise ValueError(
            f"module: a network keeps parameters only, but {module!r} also has {', '.join(others)}; "
            f"use a layer without state ({advice})"
        )


def _with_arrays_as_data(module):
    """The module, its attributes that are arrays marked as data, which those made under a trace are not."""
    from flax import nnx

    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Pytree) and not isinstance(node, nnx.Variable):
            for name, value in list(vars(node).items()):
                if isinstance(value, jax.Array | np.ndarray):
                    setattr(node, name, nnx.data(value))
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
