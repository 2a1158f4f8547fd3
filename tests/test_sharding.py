"""The step over devices: gradients and noise by formula in every layout, state in its parts, nothing lost to a NaN.

One small network with the names of ours, by hand in NumPy too; a step of each layout is compiled once and shared.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from diffjax import from_linen
from diffjax.cli import measure_step, state_bytes as bytes_a_device
from diffjax.networks import MLP, DiT, Text, UNet, UViT
from diffjax.process import normal_like, sample_keys
from diffjax.training import (
    TENSOR_RULES,
    Objective,
    data_mesh,
    fsdp_layout,
    init_state,
    jit_layout,
    make_ema,
    make_mesh,
    make_train_step,
    pmap_layout,
    state_from_params,
    tensor_layout,
)
from diffjax.training._layouts import place
from diffjax.training._rules import tensor_specs, without_fsdp

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
B, D, WIDTH = 64, 8, 32
TX = optax.sgd(0.1, momentum=0.9)  # after one step its trace is the gradient itself
frozen = lambda step, params, ema: ema
traces = []


def batch_of(step, size=B):
    """Points [b, 8], a function of the step."""
    return np.random.default_rng((7, step)).normal(size=(size, D)).astype(np.float32)


def fresh_state(tx=TX):
    """Two layers named as ours, and a row for each sample whose gradient is that sample's noise."""
    a, b = jax.random.split(jax.random.key(1))
    params = {
        "hidden": {"kernel": jax.random.normal(a, (D, WIDTH)) / 3, "bias": jnp.full(WIDTH, 0.1)},
        "close": {"kernel": jax.random.normal(b, (WIDTH, D)) / 6},
        "rows": jnp.zeros((B, D)),
    }
    return state_from_params(jax.random.key(3), params, tx)


def loss(params, x, context):
    """mean |close(tanh(hidden(x + eps))) - x|^2 + sum_i <rows_i, eps_i>/b."""
    traces.append(None)
    eps = normal_like(sample_keys(context.key, context.index), x)
    h = jnp.tanh((x + eps) @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    error = h @ params["close"]["kernel"] - x
    value = jnp.mean(error**2) + jnp.sum(params["rows"][context.index] * eps) / len(x)
    return value, {"t": context.index / context.total, "per_sample": jnp.mean(error**2, axis=1)}


def by_hand(x):
    """(gradients, noise, loss) of the first step, in float64."""
    state = jax.device_get(fresh_state().params)
    W, c, V = (np.asarray(a, float) for a in (*state["hidden"].values(), state["close"]["kernel"]))
    W, c = (W, c) if W.ndim == 2 else (c, W)
    keys = sample_keys(jax.random.fold_in(jax.random.key(3), 0), jnp.arange(B))
    eps = np.asarray(normal_like(keys, jnp.asarray(x)))
    noisy = x.astype(float) + eps
    h = np.tanh(noisy @ W + c)
    error = h @ V - x
    back = (2 / error.size) * error @ V.T * (1 - h**2)
    grads = {
        "hidden": {"kernel": noisy.T @ back, "bias": back.sum(0)},
        "close": {"kernel": (2 / error.size) * h.T @ error},
        "rows": eps / B,
    }
    return grads, eps, np.mean(error**2, axis=1)


@functools.cache
def layout(name):
    """A layout by its name; compiled once."""
    kind, devices, *more = name.split()
    n, accumulate = int(devices), int(more[0]) if more else 1
    some = jax.devices()[:n]
    make = functools.partial(make_train_step, Objective(loss, TX), ema=make_ema(0.9), accumulate=accumulate, levels=4)
    if kind == "jit":
        return jit_layout(make(), data_mesh(some))
    if kind == "fsdp":
        return fsdp_layout(make(), make_mesh(fsdp=n, devices=some))
    if kind == "tensor":
        return tensor_layout(make(), make_mesh(tensor=n, devices=some))
    if kind == "mixed":
        return tensor_layout(make(), make_mesh(data=n // 4, fsdp=2, tensor=2))
    return pmap_layout(make(axis_name="data"), some)


@functools.cache
def first_step(name):
    """(gradient, metrics, noise) of a layout's first step."""
    its = layout(name)
    placed, metrics = its.step(its.init(fresh_state), its.put_batch(batch_of(0)))
    grads = jax.device_get(its.get_state(placed).opt_state[0].trace)
    return grads, jax.device_get(metrics), grads["rows"] * B


def distance(a, b):
    """The largest relative difference between leaves."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in pairs)


def digest(state):
    """Every byte of a state but its key and step."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state))]


KINDS = ["jit", "fsdp", "tensor", "pmap"]
slow = lambda *names: [pytest.param(name, marks=pytest.mark.slow) for name in names]
EIGHT = [f"{kind} 8" for kind in KINDS]
ALL = ["jit 1", *EIGHT, "jit 8 4", *slow("jit 2", "fsdp 2", "tensor 2", "pmap 2", "mixed 8", "fsdp 8 2", "pmap 8 4")]


# Gradients and noise


@pytest.mark.parametrize("name", ALL)
def test_gradient_and_noise_are_those_of_the_formula(name):
    grads, metrics, noise = first_step(name)
    truth, eps, losses = by_hand(batch_of(0))
    assert distance(grads, truth) <= 1e-5
    np.testing.assert_allclose(noise, eps, rtol=1e-6)  # programs differ in rounding
    assert len(np.unique(noise)) == noise.size
    np.testing.assert_allclose(metrics["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_by_level"], losses.reshape(4, -1).mean(1), rtol=1e-5)
    np.testing.assert_array_equal(metrics["count_by_level"], B / 4)
    norm = math.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(truth)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert metrics["skipped"] == 0


@pytest.mark.parametrize("name", [*EIGHT, *slow("fsdp 2", "tensor 2", "pmap 2", "mixed 8")])
def test_gradients_of_all_layouts_agree(name):
    kind, devices = name.split()
    assert distance(first_step(name)[0], first_step("jit 1")[0]) <= 1e-5
    assert distance(first_step(name)[0], first_step(f"jit {devices}")[0]) <= (1e-6 if kind == "pmap" else 1e-5)


# The state


@pytest.mark.parametrize("name", ["jit 1", *EIGHT, *slow("mixed 8")])
def test_state_is_donated_stays_in_place_and_the_step_is_compiled_once(name):
    its = layout(name)
    its.step(its.put_state(fresh_state()), its.put_batch(batch_of(0)))  # compiled here: conftest clears caches
    before = len(traces)
    placed = start = its.put_state(fresh_state())
    where = jax.tree.map(lambda leaf: leaf.sharding, placed)
    for n in range(3):
        placed, _ = its.step(placed, its.put_batch(batch_of(n)))
    assert len(traces) == before
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == where
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((start.params, start.ema, start.opt_state)))
    like = its.abstract(placed)
    assert like == its.abstract(jax.eval_shape(fresh_state))
    for leaf, now in zip(jax.tree.leaves(like), jax.tree.leaves(its.get_state(placed)), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (now.shape, now.dtype, now.sharding)


@pytest.mark.parametrize("devices", [1, 8])
def test_placed_arrays_are_in_memory_of_their_own(devices):
    """From the host, from one device, from copies of the same host array and from parts; keys too."""
    whole, rows = (NamedSharding(data_mesh(jax.devices()[:devices]), spec) for spec in (P(), P("data")))
    host = {"array": np.ones((64, 8), np.float32), "number": np.ones((), np.float32)}
    keys = jax.random.split(jax.random.key(0), 8)
    trees = [
        host,
        {**jax.tree.map(jnp.asarray, host), "key": keys},
        {**jax.device_put(host, whole), "key": jax.device_put(keys, whole)},
        {"array": jax.device_put(host["array"], rows), "key": jax.device_put(keys, rows)},
    ]
    for tree in trees:
        for where in (whole, rows) if "number" not in tree else (whole,):
            placed = place(tree, dict.fromkeys(tree, where))
            assert not memory(tree) & memory(placed)
            for leaf, copy in zip(jax.tree.leaves(tree), jax.tree.leaves(placed), strict=True):
                assert copy.sharding.is_equivalent_to(where, copy.ndim)
                np.testing.assert_array_equal(data_of(copy), data_of(leaf))


def data_of(leaf):
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def is_key(leaf):
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def memory(tree):
    """Where the numbers of all arrays begin."""
    leaves = [leaf._base_array if is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]  # its data would be a copy
    arrays = [leaf for leaf in leaves if isinstance(leaf, np.ndarray)]
    parts = [part.data for leaf in leaves if isinstance(leaf, jax.Array) for part in leaf.addressable_shards]
    return {array.ctypes.data for array in arrays} | {part.unsafe_buffer_pointer() for part in parts}


@pytest.mark.parametrize("name", ["jit 1", "jit 8", "fsdp 8", "pmap 8", *slow("fsdp 1", "pmap 1")])
def test_steps_are_half_of_them_and_a_restart_and_the_rest(name):
    its = layout(name)

    def go(placed, first, last):
        for n in range(first, last):
            placed, _ = its.step(placed, its.put_batch(batch_of(n)))
        return its.get_state(placed)

    whole = go(its.init(fresh_state), 0, 6)
    half = go(its.init(fresh_state), 0, 3)
    host = jax.device_get(half._replace(key=jax.random.key_data(half.key)))
    read = jax.device_put(
        host._replace(key=jax.random.wrap_key_data(host.key)),
        jax.tree.map(lambda leaf: leaf.sharding, its.abstract(jax.eval_shape(fresh_state))),
    )
    rest = go(its.move_state(read), 3, 6)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(read))
    assert digest(rest) == digest(whole)
    assert digest(rest) != digest(half)


@pytest.mark.parametrize("name", ["jit 1", *EIGHT, "jit 8 4"])
def test_batch_that_is_not_finite_changes_nothing_but_the_step(name):
    its, bad = layout(name), batch_of(1)
    bad[5, 2] = np.nan
    placed, _ = its.step(its.init(fresh_state), its.put_batch(batch_of(0)))
    before = digest(its.get_state(placed))
    placed, metrics = its.step(placed, its.put_batch(bad))
    after = its.get_state(placed)
    assert float(metrics["skipped"]) == 1
    assert not np.isfinite(float(metrics["loss"]))
    assert digest(after) == before
    assert int(after.step) == 2
    placed, metrics = its.step(its.put_state(after), its.put_batch(batch_of(2)))
    assert float(metrics["skipped"]) == 0
    assert digest(its.get_state(placed)) != before


def test_gradient_that_is_not_finite_is_skipped_though_the_loss_is_finite():
    root = lambda params, batch, context: (jnp.sqrt(params.sum()), {})  # slope infinite at 0
    step = make_train_step(Objective(root, optax.adam(0.1)), ema=make_ema(0.9))
    state = state_from_params(jax.random.key(0), jnp.zeros(3), optax.adam(0.1))
    after, metrics = step(state, np.zeros((4, 1)))
    assert (float(metrics["loss"]), float(metrics["skipped"]), int(after.step)) == (0, 1, 1)
    assert digest(after) == digest(state)


@pytest.mark.parametrize("kind", ["jit", *slow("pmap")])
def test_several_steps_a_call(kind):
    one = layout(f"{kind} 8")
    if kind == "jit":
        many = jit_layout(make_train_step(Objective(loss, TX), ema=make_ema(0.9), levels=4), steps=3)
    else:
        many = pmap_layout(make_train_step(Objective(loss, TX), ema=make_ema(0.9), axis_name="data", levels=4), steps=3)
    batches, metrics = [batch_of(n) for n in range(3)], []
    placed, together = many.step(many.init(fresh_state), many.put_batch(batches))
    single = one.init(fresh_state)
    for batch in batches:
        single, found = one.step(single, one.put_batch(batch))
        metrics.append(found)
    assert together["loss"].shape == (3,)
    assert together["loss_by_level"].shape == (3, 4)
    np.testing.assert_allclose(together["loss"], [m["loss"] for m in metrics], rtol=1e-6)
    np.testing.assert_array_equal(together["count_by_level"], np.full((3, 4), B / 4))
    a, b = many.get_state(placed), one.get_state(single)
    assert int(a.step) == many.steps == 3
    assert distance(a.opt_state, b.opt_state) <= 1e-5
    with pytest.raises(ValueError, match="batch: a list of 3 batches is needed for 3 steps a call, got 2"):
        many.put_batch(batches[:2])


# What lies where


WORDS = Text(jnp.zeros((1, 3, 8)), jnp.zeros((1, 3), bool))
NETWORKS = {
    "unet": (lambda **o: UNet((32, 64), 1, (1,), 32, num_classes=10, **o), (1, 8, 8, 1), jnp.zeros(1, int)),
    "mlp": (lambda **o: MLP(width=128, depth=3, **o), (1, 2), None),
    "dit": (lambda **o: DiT(32, 2, 4, text_width=8, joint=True, **o), (1, 8, 8, 1), WORDS),
    "dit, stacked": (lambda **o: DiT(32, 3, 4, scan=True, **o), (1, 8, 8, 1), None),
    "uvit": (lambda **o: UViT(32, 3, 4, qkv_bias=True, **o), (1, 8, 8, 1), None),
}


@functools.cache
def abstract_state(name, **options):
    """The shapes of a fresh state of a network, under Adam."""
    make, shape, cond = NETWORKS[name]
    network = from_linen(make(**options))
    return network, jax.eval_shape(
        lambda: init_state(jax.random.key(0), network, optax.adam(1e-3), jnp.zeros(shape), cond)
    )


@pytest.mark.parametrize("name", ["unet", "mlp"])
def test_fsdp_holds_an_eighth_of_the_state(name):
    _, state = abstract_state(name)
    nothing = lambda state, batch: (state, {})
    whole, parts = bytes_a_device(jit_layout(nothing), state), bytes_a_device(fsdp_layout(nothing), state)
    assert parts <= 1.1 * whole / 8


def test_arrays_of_a_placed_state_are_as_large_as_said():
    for name in ("fsdp 8", "tensor 8", "mixed 8", "jit 8"):
        placed = layout(name).init(fresh_state)
        held = sum(leaf.addressable_shards[3].data.nbytes for leaf in jax.tree.leaves(placed))
        assert held == bytes_a_device(layout(name), placed)
    assert layout("fsdp 8").init(fresh_state).params["rows"].addressable_shards[3].data.shape == (8, 8)


@pytest.mark.parametrize("name", ["jit 1", *slow("pmap 8")])
def test_step_is_measured_by_its_program(name):
    its = layout(name)
    flops, memory = measure_step(its, jax.eval_shape(fresh_state), batch_of(0))
    products = 2 * B * D * WIDTH * (2 + 3)  # x W, h V; and back: dV, dh, dW
    devices = its.devices
    assert products < devices * flops < 3 * products + devices * 40_000
    state = bytes_a_device(its, jax.eval_shape(fresh_state))
    assert memory["given back in their place"] == pytest.approx(state, rel=0.01)  # all of the state is donated
    assert memory["of arguments"] == pytest.approx(state + batch_of(0).nbytes / devices, rel=0.01)


def specs(its, state):
    found = jax.tree_util.tree_leaves_with_path(its.abstract(state))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.sharding.spec for path, leaf in found}


def test_tensor_rules_name_layers_of_our_networks_in_every_part_of_the_state():
    its = tensor_layout(lambda state, batch: (state, {}), make_mesh(tensor=4))
    unet, mlp, dit, stacked, uvit = (specs(its, abstract_state(name)[1]) for name in NETWORKS)
    for part in ("params", "ema", "opt_state/0/mu", "opt_state/0/nu"):
        assert unet[f"{part}/middle_attention/qkv/kernel"] == P(None, "tensor")
        assert unet[f"{part}/middle_attention/out/kernel"] == P("tensor")
        assert unet[f"{part}/up_1_0/conv_1/kernel"] == P(None, None, None, "tensor")
        assert unet[f"{part}/up_1_0/conv_2/kernel"] == P(None, None, "tensor")
        assert unet[f"{part}/in/kernel"] == unet[f"{part}/out/kernel"] == P()
        assert mlp[f"{part}/blocks__2/hidden/kernel"] == P(None, "tensor")
        assert mlp[f"{part}/blocks__2/close/kernel"] == P("tensor")
        assert dit[f"{part}/transformer_blocks__0/attn/add_q_proj/kernel"] == P(None, "tensor")
        assert dit[f"{part}/transformer_blocks__1/ff/net__2/kernel"] == P("tensor")
        assert stacked[f"{part}/transformer_blocks__/ff/net__0/proj/kernel"] == P(None, None, "tensor")
        assert stacked[f"{part}/transformer_blocks__/attn1/to_q/bias"] == P(None, "tensor")
        assert stacked[f"{part}/transformer_blocks__/attn1/to_out__0/kernel"] == P(None, "tensor")
        assert uvit[f"{part}/mid_block/mlp/fc2/kernel"] == P("tensor")
    for pattern, _ in TENSOR_RULES:
        assert any(re.search(f"{pattern}$", path) for path in {*unet, *mlp, *dit, *uvit}), pattern


def test_a_rule_may_say_what_fsdp_splits():
    mesh = make_mesh(fsdp=2, tensor=4)
    rules = [(r"kernel", P("fsdp", "tensor")), (r"bias", P(("fsdp", "tensor"))), (r"rows", P(None, "tensor"))]
    found = tensor_specs(mesh, rules, 1)(fresh_state()).params
    assert found["hidden"] == {"kernel": P("fsdp", "tensor"), "bias": P(("fsdp", "tensor"))}
    assert found["rows"] == P("fsdp", "tensor")  # where no rule does, the longest axis
    whole = without_fsdp(found)
    assert whole["hidden"] == {"kernel": P(None, "tensor"), "bias": P("tensor")}
    assert whole["rows"] == P(None, "tensor")
    assert without_fsdp(P(("fsdp",), ("data", "fsdp", "tensor"), None)) == P(None, ("data", "tensor"))


# Bad input, before anything is compiled


def errors():
    step, eight = (lambda state, batch: (state, {})), jax.devices()
    small = {"w": jnp.zeros((3, 5)), "bias": jnp.zeros(7)}
    state = state_from_params(jax.random.key(0), small, optax.sgd(0.1))
    odd = fresh_state()._replace(params={"hidden": {"kernel": jnp.zeros((8, 30))}})
    yield "mesh of 16", lambda: make_mesh(data=16), r"a mesh of \(16, 1, 1\) needs 16 devices, there are 8"
    yield "3 of 8", lambda: make_mesh(fsdp=3), "fsdp, tensor: 3 x 1 does not divide the 8 devices"
    yield "none", lambda: make_mesh(tensor=0), "tensor: at least 1, got 0"
    yield "fewer", lambda: make_mesh(fsdp=4, data=1, devices=eight[:2]), "needs 4 devices, there are 2"
    for its in (layout("jit 8"), layout("fsdp 8"), layout("pmap 8"), layout("mixed 8")):  # nothing is compiled here
        yield "batch", lambda its=its: its.put_batch(batch_of(0, 13)), r"batch_size: 13 samples .* over \d devices"
    yield "no fsdp axis", lambda: fsdp_layout(step, data_mesh()), "mesh: it needs an axis 'fsdp'"
    yield "no tensor axis", lambda: tensor_layout(step, data_mesh()), "mesh: it needs an axis 'tensor'"
    yield "nothing to shard", lambda: fsdp_layout(step).put_state(state), "fsdp: 8 parts, but no array has 128"
    yield "no rule", lambda: tensor_layout(step).put_state(state), "rules: none of .*qkv.* fits an array"
    yield "no division", lambda: tensor_layout(step).put_state(odd), r"params/hidden/kernel of shape \(8, 30\)"
    yield (
        "accumulate 0",
        lambda: make_train_step(Objective(loss, TX), ema=frozen, accumulate=0),
        "accumulate: at least 1, got 0",
    )
    three = make_train_step(Objective(loss, TX), ema=frozen, accumulate=3)
    yield "accumulate 3", lambda: three(fresh_state(), batch_of(0)), "accumulate: a batch of 64 .* in 3 equal parts"
    silent = lambda params, batch, context: (params["rows"].sum(), {"t": context.index})
    levels = make_train_step(Objective(silent, TX), ema=frozen, levels=4)
    yield "levels", lambda: levels(fresh_state(), batch_of(0)), r"levels: 4, but the loss has no per_sample"
    yield "steps", lambda: jit_layout(step, steps=0), "steps: at least 1 a call, got 0"


def test_what_does_not_fit_is_named():
    for _, make, message in errors():
        with pytest.raises(ValueError, match=message):
            make()


# Memory and precision of the networks


def scalar_loss(network, x, cond):
    key = jax.random.key(5)
    return lambda params: jnp.mean(network.apply(params, x, jnp.zeros(len(x)), cond, key=key) ** 2)


def kept(function, params):
    """Bytes that the forward pass keeps for the backward pass."""
    _, back = jax.eval_shape(lambda p: jax.vjp(function, p), params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(back))


@pytest.mark.parametrize("name", ["mlp", *slow("unet")])
def test_rematerialisation_keeps_less_and_names_parameters_the_same(name):
    (network, state), (again, other) = abstract_state(name, dropout=0.1), abstract_state(name, dropout=0.1, remat=True)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), other
    )
    x = jnp.zeros((32, *NETWORKS[name][1][1:]))
    cond = None if name == "mlp" else jnp.zeros(32, int)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    plain, less = (kept(scalar_loss(n, x, cond), state.params) - weights for n in (network, again))
    assert less < 0.5 * plain


@pytest.mark.parametrize("name", slow("mlp", "unet"))
def test_rematerialisation_leaves_the_gradient(name):
    small = MLP if name == "mlp" else UNet
    options = {"width": 8, "depth": 1} if name == "mlp" else {"channels": (8,), "attention": (0,)}
    shape = (4, 3) if name == "mlp" else (2, 4, 4, 1)
    networks = [from_linen(small(**options, dropout=0.3, remat=remat)) for remat in (False, True)]
    x = jax.random.normal(jax.random.key(1), shape)
    made = [network.init(jax.random.key(0), x[:1], jnp.zeros(1)) for network in networks]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), *made))
    leaves, treedef = jax.tree.flatten(made[0])  # away from the zeros they start with
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(treedef, moved)
    a, b = (jax.jit(jax.grad(scalar_loss(network, x, None)))(params) for network in networks)
    top = max(float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(a))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert float(jnp.linalg.norm(x - y)) <= 1e-5 * top


@pytest.mark.parametrize("name", ["mlp", *slow("unet")])
def test_bfloat16_computes_and_the_state_stays_float32(name):
    network, state = abstract_state(name, dtype=jnp.bfloat16)
    cond = None if name == "mlp" else jnp.zeros(4, int)

    def value(params, x, context):
        return jnp.mean((network.apply(params, x, jnp.zeros(len(x)), cond, key=context.key) - x) ** 2), {}

    step = make_train_step(Objective(value, optax.adam(1e-3)), ema=make_ema(0.9))
    x = jax.ShapeDtypeStruct((4, *NETWORKS[name][1][1:]), jnp.float32)
    after, metrics = jax.eval_shape(step, state, x)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)
    assert {leaf.dtype for leaf in jax.tree.leaves((after.params, after.ema, metrics))} == {jnp.dtype("float32")}
    products = [
        line
        for line in str(jax.make_jaxpr(step)(state, x)).splitlines()
        if "= dot_general" in line or "= conv_general" in line
    ]
    assert sum(":bf16[" in line for line in products) > 0.7 * len(products) > 0


# Our own network under every layout


@pytest.mark.slow
def test_gradients_of_a_unet_in_every_layout():
    network = from_linen(UNet((8, 16), 1, (1,), 8))
    params = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    state = lambda: state_from_params(jax.random.key(3), jax.tree.unflatten(treedef, moved), TX)
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype(np.float32)

    def denoise(params, x, context):
        eps = normal_like(sample_keys(context.key, context.index), x)
        return jnp.mean((network.apply(params, x + eps, jnp.zeros(len(x)), None) - x) ** 2), {}

    make = functools.partial(make_train_step, Objective(denoise, TX), ema=frozen)
    layouts = {
        "one": jit_layout(make(), data_mesh(jax.devices()[:1])),
        "fsdp": fsdp_layout(make()),
        "tensor": tensor_layout(make(), make_mesh(fsdp=2, tensor=2)),
        "pmap": pmap_layout(make(axis_name="data")),
    }
    grads = {}
    for name, its in layouts.items():
        placed, _ = its.step(its.init(state), its.put_batch(x))
        grads[name] = jax.device_get(its.get_state(placed).opt_state[0].trace)
    top = max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(grads["one"]))
    for name in ("fsdp", "tensor", "pmap"):
        for a, b in zip(jax.tree.leaves(grads["one"]), jax.tree.leaves(grads[name]), strict=True):
            assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(a), 1e-2 * top)
