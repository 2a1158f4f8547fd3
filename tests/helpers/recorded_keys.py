"""Which keys a function draws from, and which it derives others from.

    key(seed) --traced function--> every draw, fold_in and split reports the number of its key --> Record

A key of `key(seed)` has a type of its own (threefry under another name), so that programs compiled for it are kept
apart from those of all other keys. Only the keys are computed: what a function returns is dropped, and the compiler
leaves out all that led to it.
"""

import contextlib
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.extend.random import define_prng_impl, threefry_prng_impl

_IMPL = define_prng_impl(
    key_shape=threefry_prng_impl.key_shape,
    seed=threefry_prng_impl.seed,
    split=threefry_prng_impl.split,
    random_bits=threefry_prng_impl.random_bits,
    fold_in=threefry_prng_impl.fold_in,
    name="recorded",
    tag="rec",
)
_DRAW, _PARENT = 0, 1
_seen: list = []


class Record(NamedTuple):
    """The keys of a run, each as the one number its data make."""

    draws: Counter
    """How often each key was drawn from."""
    parents: set
    """Keys that others were derived from."""

    def check(self, *, again=False):
        """No key is drawn from twice, unless that is meant, nor both drawn from and derived from.

        Else two draws could be equal: `split(key)[i]` is `fold_in(key, i)`.
        """
        twice = [key for key, times in self.draws.items() if times > 1 and not again]
        assert not twice, f"{len(twice)} of {len(self.draws)} keys are drawn from more than once"
        both = self.draws.keys() & self.parents
        assert not both, f"{len(both)} of {len(self.draws)} keys are drawn from, and others are derived from them too"


def key(seed: int):
    """A key whose draws are recorded."""
    return jax.random.key(seed, impl=_IMPL)


def compiled(function, *, jit=True):
    """`run(*args) -> Record` of a function of arrays and recorded keys."""

    def program(*args):
        function(*args)

    program = jax.jit(program) if jit else program

    def run(*args) -> Record:
        _seen.clear()
        with _reporting():
            program(*args)
            jax.effects_barrier()
        draws = [number for kind, number in _seen if kind == _DRAW]
        return Record(Counter(draws), {number for kind, number in _seen if kind == _PARENT})

    return run


@contextlib.contextmanager
def _reporting():
    """Draws, foldings and splits report their keys to `_seen` while they are traced in here."""
    prng = jax._src.random.prng
    kinds = {"random_bits": _DRAW, "random_fold_in": _PARENT, "random_split": _PARENT}
    plain = {name: getattr(prng, name) for name in kinds}

    def reporting(name):
        def call(keys, *args, **kwargs):
            if str(getattr(keys, "dtype", "")) == "key<rec>":
                _report(kinds[name])(jax.random.key_data(keys))
            return plain[name](keys, *args, **kwargs)

        return call

    for name in kinds:
        setattr(prng, name, reporting(name))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(prng, name, function)


def _report(kind):
    def store(data):
        words = np.asarray(data, np.uint64).reshape(-1, 2)
        _seen.extend((kind, int(number)) for number in (words[:, 0] << np.uint64(32)) + words[:, 1])

    @custom_vmap
    def report(data):
        jax.debug.callback(store, data)
        return jnp.zeros(())

    @report.def_vmap
    def _(size, batched, data):
        return report(data), False  # all of the batch in one call, not one call each

    return report
