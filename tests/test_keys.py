"""Randomness: no key is used twice, and what a sample draws depends on its global index alone.

Every public function with a key is run with keys that are recorded (`recorded_keys.py`), and must have a row in
`keyed.py`. That a key is drawn from once, and that none is both drawn from and derived from, keeps any two draws of a
call apart: those of two samples, of two halves of a batch, of two steps.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
import recorded_keys
from keyed import (
    BY_INDEX,
    EPS,
    NETWORK,
    NOT_ALONE,
    NOT_JITTED,
    STEPPING,
    TIMES,
    VP,
    WHOLE_BATCH,
    public,
    stepper_instances,
)
from registry import ALL_TIMES

import diffjax as dj
from diffjax import config, losses, training
from diffjax.process import normal_like, sample_keys

ROWS = (
    BY_INDEX | {f"step: {name}": row for name, row in STEPPING.items()} | {f"times: {n}": r for n, r in TIMES.items()}
)


def test_every_public_function_with_a_key_is_in_the_table():
    known = BY_INDEX.keys() | WHOLE_BATCH.keys() | NOT_ALONE
    classes = {type(stepper) for stepper in stepper_instances().values()} | {
        type(make(VP)) for make in ALL_TIMES.values()
    }
    missing = [name for name, (_, of) in public().items() if name not in known and of not in classes]
    assert not missing, f"add to tests/helpers/keyed.py: {missing}"


def test_the_table_names_only_what_is_public():
    gone = (BY_INDEX.keys() | WHOLE_BATCH.keys() | NOT_ALONE) - public().keys()
    assert not gone, f"no longer public, or without a key: {gone}"


@pytest.mark.parametrize("name", ROWS)
def test_what_a_sample_draws_depends_on_its_global_index_alone(name):
    row = ROWS[name]
    run = recorded_keys.compiled(row.call)
    drawn = lambda *index: run(recorded_keys.key(0), jnp.array(index, jnp.int32))
    batch = drawn(5, 0, 2)
    batch.check(again=row.again)
    keys = batch.draws.keys()
    own = keys - drawn(5, 7, 2).draws.keys()  # those of sample 0, whose place sample 7 took
    moved = keys - drawn(0, 2, 5).draws.keys()
    assert bool(keys) == row.draws
    assert len(moved) == row.first, "the same samples in another order draw from other keys"
    assert len(keys) == 3 * len(own) + row.shared + row.first, "some draws are not a sample's own"


# the optimal plan's one draw costs the import of its library and a solver's compilation
_WHOLE_BATCH = [
    pytest.param(n, marks=pytest.mark.slow if n == "OptimalTransport.__call__" else []) for n in WHOLE_BATCH
]


@pytest.mark.parametrize("name", _WHOLE_BATCH)
def test_draws_of_a_whole_batch_come_from_different_keys(name):
    record = recorded_keys.compiled(WHOLE_BATCH[name], jit=name not in NOT_JITTED)(recorded_keys.key(0))
    record.check()
    assert bool(record.draws) == (name != "Assignment.__call__")


def test_drawing_twice_from_a_key_is_noticed():
    def shared(key):
        jax.vmap(lambda k: jax.random.normal(k, (2,)))(jax.random.split(key))
        jax.random.uniform(jax.random.split(key)[1])

    def parent(key):
        jax.random.normal(key, ()), jax.random.fold_in(key, 1)

    for reuse, words in ((shared, "1 of 2 keys are drawn from more than once"), (parent, "others are derived")):
        with pytest.raises(AssertionError, match=words):
            recorded_keys.compiled(reuse)(recorded_keys.key(0)).check()


def test_the_draws_of_parameters_and_of_each_step_of_training_differ():
    x0, tx = jnp.zeros((4, 2)), optax.sgd(0.1)

    def loss(params, x0, context):
        choices = {"times": dj.UniformTimes(VP), "weighting": losses.native}
        choices |= {"index": context.index, "total": context.total}
        return dj.denoising_loss(dj.Diffusion(NETWORK, VP, EPS), params, context.key, x0, **choices)

    def run(key):
        step = training.make_train_step(training.Objective(loss, tx), ema=training.make_ema(0.9), accumulate=2)
        state = training.init_state(key, NETWORK, tx, x0[:1])
        for _ in range(2):
            state, _ = step(state, x0)

    record = recorded_keys.compiled(run)(recorded_keys.key(0))
    record.check()
    assert len(record.draws) == 1 + 2 * (4 + 4 + 2)  # parameters; times, noise, and dropout of both parts


@pytest.mark.slow
def test_the_draws_of_each_update_of_each_objective_differ():
    """Of three, one with two updates a step, one at every second step: each update draws its samples' noise and one
    number."""

    def loss(params, x, context):
        jax.random.normal(jax.random.fold_in(context.key, 9), ())
        eps = normal_like(sample_keys(jax.random.fold_in(context.key, 8), context.index), x)
        return jnp.mean(eps * params["a"] * params["b"] * params["c"]), {}

    tx = optax.sgd(0.1)
    options = {"a": {"times": 2}, "b": {"every": 2}, "c": {}}
    objectives = [training.Objective(loss, tx, of=of, **more) for of, more in options.items()]

    def run(key):
        step = training.make_train_step(objectives, ema=training.make_ema(0.9))
        state = training.state_from_params(key, dict.fromkeys("abc", jnp.ones(2)), objectives)
        for _ in range(3):
            state, _ = step(state, jnp.zeros((4, 2)))

    record = recorded_keys.compiled(run)(recorded_keys.key(0))
    record.check()
    assert len(record.draws) == 3 * 2 * (2 + 1) + 2 * (4 + 1) + 3 * (4 + 1)


def test_a_configured_run_draws_labels_noise_dropout_and_parameters_apart():
    network = config.NetworkConfig(name="mlp", width=4, depth=1, dropout=0.1)
    guidance = config.GuidanceConfig(dropout=0.5)
    x0, labels = jnp.zeros((4, 2)), jnp.zeros(4, int)

    parts = config.build(config.Config(network=network, guidance=guidance), 3)

    def run(key):
        state = training.init_state(key, parts.diffusion.network, optax.sgd(0.1), x0[:1], labels[:1])
        context = training.Context(jax.random.fold_in(state.key, 0), index=jnp.arange(4), total=4)
        parts.loss(state.params, (x0, labels), context)

    record = recorded_keys.compiled(run)(recorded_keys.key(0))
    record.check()
    assert len(record.draws) >= 1 + 4 + 1 + 4 + 1  # parameters, labels, the place of times, noise, dropout
