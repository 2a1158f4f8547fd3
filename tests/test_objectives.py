"""Several objectives in one train step, against the same updates written by hand with optax; and their context."""

import functools
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import data
from diffjax.process import normal_like, sample_keys
from diffjax.training import (
    Checkpoints,
    Context,
    Objective,
    averaged_params,
    data_mesh,
    fsdp_layout,
    jit_layout,
    load_weights,
    make_ema,
    make_mesh,
    make_train_step,
    pmap_layout,
    save_weights,
    state_from_params,
    tensor_layout,
    train,
)
from diffjax.training._log import means

B, D = 16, 8
needs_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
frozen = lambda step, params, ema: ema


def noise(context, x):
    return normal_like(sample_keys(context.key, context.index), x)


def loss_a(params, x, context):
    """Moves a towards b, amid noise."""
    a, b = params["a"]["w"], params["b"]["w"]
    return jnp.mean(jnp.sum((x * a - b + noise(context, x)) ** 2, axis=-1)), {"total": context.total}


def loss_b(params, x, context):
    """Moves b towards a and a teacher, which has a whole number too."""
    a, b, teacher = params["a"]["w"], params["b"]["w"], params["teacher"]
    return jnp.mean(jnp.sum((b - a * teacher["w"] * teacher["n"] + x * noise(context, x)) ** 2, axis=-1)), {}


def start():
    w = lambda seed: jax.random.normal(jax.random.key(seed), (D,))
    return {"a": {"w": w(1)}, "b": {"w": w(2)}, "teacher": {"w": w(3), "n": jnp.array(2)}}


def batch_of(step):
    return np.random.default_rng((5, step)).normal(size=(B, D)).astype(np.float32)


TX_A, TX_B = optax.adam(0.1), optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.05, momentum=0.9))


def pair(**options):
    """Both objectives, of which the second has options."""
    return [Objective(loss_a, TX_A, of="a"), Objective(loss_b, TX_B, of="b", **options)]


def by_hand(objectives, steps, *, simultaneous):
    """(a, b) after some steps: the updates one after the other, by optax."""
    params = {name: entry for name, entry in start().items() if name != "teacher"}
    opt_states = {o.of: o.tx.init(params[o.of]) for o in objectives}
    for step in range(steps):
        x, at_start = batch_of(step), params
        for i, o in enumerate(objectives):
            if step % o.every:
                continue
            for j in range(o.times):
                key = jax.random.fold_in(jax.random.key(0), step)
                key = jax.random.fold_in(jax.random.fold_in(key, i), j)
                part = jnp.asarray(x[j :: o.times])
                context = Context(key, index=jnp.arange(len(part)))
                others = at_start if simultaneous else params
                full = lambda mine, o=o, others=others: start() | others | {o.of: mine}
                value = lambda mine, full=full, o=o, part=part, c=context: o.loss_fn(full(mine), part, c)[0]
                updates, opt_states[o.of] = o.tx.update(jax.grad(value)(params[o.of]), opt_states[o.of], params[o.of])
                params = params | {o.of: optax.apply_updates(params[o.of], updates)}
    return params


def run(objectives, steps=4, layout=None, **options):
    """A state after some steps, and the metrics of each."""
    options = {"ema": make_ema(0.9, warmup=False)} | options
    layout = layout or jit_layout(make_train_step(objectives, **options), data_mesh(jax.devices()[:1]))
    names = tuple(options["ema"]) if isinstance(options["ema"], dict) else ()
    state = layout.put_state(state_from_params(jax.random.key(0), start(), objectives, averages=names))
    found = []
    for n in range(steps):
        state, metrics = layout.step(state, layout.put_batch(batch_of(n)))
        found.append({name: float(value) for name, value in metrics.items()})
    return layout.get_state(state), found


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


# Order, times, every


CASES = {
    "one after the other": ({}, {}),
    "at once": ({}, {"simultaneous": True}),
    "two updates a step": ({"times": 2}, {}),
    "two updates at once": ({"times": 2}, {"simultaneous": True}),
    "every third step": ({"every": 3}, {}),
    "two at every third, accumulated": ({"times": 2, "every": 3}, {"accumulate": 2}),
}


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("name", CASES)
def test_updates_are_those_written_by_hand(name, backend, monkeypatch):
    """In order, on the right parameters, from the right keys and parts; an update is chosen by a branch or selected."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    of_b, of_step = CASES[name]
    if backend == "gpu" and not of_step:
        pytest.skip("the same selection")
    objectives = pair(**of_b)
    state, metrics = run(objectives, **of_step)
    truth = by_hand(objectives, 4, simultaneous=of_step.get("simultaneous", False))
    for entry in ("a", "b"):
        np.testing.assert_allclose(state.params[entry]["w"], truth[entry]["w"], rtol=2e-5, atol=1e-6)
    due = [step % of_b.get("every", 1) == 0 for step in range(4)]
    assert [m["b/loss"] > 0 for m in metrics] == due
    assert all(m["loss"] == m["a/loss"] > 0 and m["skipped"] == 0 and m["a/total"] == B for m in metrics)
    if "every" in of_b:
        assert [(m["due"], m["a/due"], m["b/due"]) for m in metrics] == [(1, 1, float(now)) for now in due]
    else:
        assert metrics[0].keys() == {"loss", "skipped", "a/loss", "a/grad_norm", "a/total", "b/loss", "b/grad_norm"}


def test_the_cases_differ():
    """Each option changes what comes out, so that the truths above tell them apart."""
    ends = [by_hand(pair(**of_b), 4, simultaneous="simultaneous" in of_step) for of_b, of_step in CASES.values()]
    flat = [np.concatenate([end["a"]["w"], end["b"]["w"]]) for end in ends[:5]]
    assert min(np.abs(x - y).max() for i, x in enumerate(flat) for y in flat[:i]) > 1e-3


def test_a_lone_objective_of_several_updates_has_a_key_for_each():
    draw = lambda params, x, context: (jnp.sum(params["a"]["w"]) * jax.random.normal(context.key), {})
    state, _ = run(Objective(draw, optax.sgd(1.0), of="a", times=4, name="draw"), 1, ema=frozen)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    draws = sum(jax.random.normal(jax.random.fold_in(key, j)) for j in range(4))
    np.testing.assert_allclose(start()["a"]["w"] - state.params["a"]["w"], draws, rtol=1e-5)


# What is trained, and what is not


@pytest.mark.parametrize(
    "of",
    ["a", ("a",), lambda params: {"a": True, "b": False, "teacher": np.bool_(False)}],
    ids=["name", "names", "mask"],
)
def test_only_what_is_trained_moves_and_has_an_average_and_an_optimiser(of):
    state, metrics = run(Objective(loss_a, TX_A, of=of))
    fresh = start()
    assert bits((state.params["b"], state.params["teacher"])) == bits((fresh["b"], fresh["teacher"]))
    assert bits(state.params["a"]) != bits(fresh["a"])
    assert state.ema["b"] == {"w": None}
    assert state.ema["teacher"] == {"w": None, "n": None}
    moments = state.opt_state[0]
    assert moments.mu["b"] == moments.nu["b"] == {"w": None}
    assert moments.mu["a"]["w"].shape == (D,)
    assert metrics[0].keys() == {"loss", "grad_norm", "total", "skipped"}
    whole = averaged_params(state)
    assert bits(whole["teacher"]) == bits(fresh["teacher"])
    assert bits(whole["a"]) == bits(state.ema["a"]) != bits(state.params["a"])


def test_clipping_and_states_of_an_objective_are_its_own():
    """With objectives apart, each of them moves as it would alone."""
    aside = lambda loss, other: lambda params, x, context: loss(params | {other: start()[other]}, x, context)
    both = [Objective(aside(loss_a, "b"), TX_A, of="a"), Objective(aside(loss_b, "a"), TX_B, of="b")]
    together, _ = run(both)
    keys = lambda loss, i: (
        lambda params, x, c: loss(params, x, c._replace(key=jax.random.fold_in(jax.random.fold_in(c.key, i), 0)))
    )
    for i, one in enumerate(both):
        alone, _ = run(one._replace(loss_fn=keys(one.loss_fn, i)))
        assert bits(alone.params[one.of]) == bits(together.params[one.of])
        assert bits(alone.opt_state) == bits(together.opt_state[one.of])


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("options", [{}, {"simultaneous": True}, {"every": 2, "times": 2}])
def test_a_number_that_is_not_finite_in_any_objective_undoes_the_step(column, options):
    """In the loss of the first or of the last, whatever the other has done before."""
    spoil = lambda loss, i: lambda params, x, context: (loss(params, x, context)[0] * jnp.mean(x[:, i]) ** 0.5, {})
    of_last = {name: value for name, value in options.items() if name != "simultaneous"}
    objectives = [Objective(spoil(loss_a, 0), TX_A, of="a"), Objective(spoil(loss_b, 1), TX_B, of="b", **of_last)]
    step = jax.jit(make_train_step(objectives, ema=make_ema(0.9), simultaneous="simultaneous" in options))
    good, bad = np.abs(batch_of(0)), np.abs(batch_of(1))
    bad[3, column] = -1e3
    state = state_from_params(jax.random.key(0), start(), objectives)
    after, metrics = step(state, good)
    assert float(metrics["skipped"]) == 0
    after = after._replace(step=jnp.int32(2))
    worse, metrics = step(after, bad)
    assert float(metrics["skipped"]) == 1
    assert bits(worse[1:4]) == bits(after[1:4])
    assert int(worse.step) == 3
    assert np.isnan(metrics[f"{'ab'[column]}/loss"])


# Context


def test_a_loss_reads_averages_by_name_whole_and_pays_for_none_that_it_does_not_read():
    """The average of step n is that after step n - 1; the teacher in it is the one of params; `whole` is lazy."""
    wholes = []

    def whole(params):
        wholes.append(jax.tree.structure(params))
        return params

    def loss(read):
        def value(params, x, context):
            assert context.step.dtype == jnp.int32
            assert sorted(context.ema) == ["fast", "slow"]
            target = context.ema["slow"] if read else params
            gap = jnp.sum(target["a"]["w"] * target["teacher"]["w"])
            return jnp.sum(params["a"]["w"] ** 2), {"gap": gap, "step": context.step}

        return value

    averages = {"slow": make_ema(0.5, warmup=False), "fast": make_ema(0.1, warmup=False)}
    for read in (True, False):
        wholes.clear()
        objective = Objective(loss(read), optax.sgd(0.1), of="a")
        step = make_train_step(objective, ema=averages)
        jitted = jax.jit(lambda state, x, step=step: step(state, x, whole))
        state = state_from_params(jax.random.key(0), start(), objective, averages=tuple(averages))
        slow = a = np.asarray(start()["a"]["w"])
        for n in range(3):
            state, metrics = jitted(state, batch_of(n))
            expected = np.sum((slow if read else a) * np.asarray(start()["teacher"]["w"]))
            np.testing.assert_allclose(metrics["gap"], expected, rtol=1e-5)
            assert int(metrics["step"]) == n
            a = 0.8 * a
            slow = 0.5 * slow + 0.5 * a
        np.testing.assert_allclose(averaged_params(state, "slow")["a"]["w"], slow, rtol=1e-5)
        assert len(wholes) == (2 if read else 1)  # parameters; and the one average that is read
        assert set(wholes) == {jax.tree.structure(start())}


def contrast(params, x, context):
    """Each sample against all of the batch: mean_i log sum_j exp(<a x_i, x_j>), of the device's i and everybody's j."""
    z = x * params["a"]["w"]
    everyone, index = context.gather((z, context.index))
    same = index[None] == context.index[:, None]
    scores = jnp.where(same, 0.0, z @ everyone.T)
    return jnp.mean(jax.nn.logsumexp(scores, axis=1)), {"all": jnp.sum(index)}


@needs_devices
def test_gather_under_pmap_is_the_whole_batch_of_jit():
    """Values and gradients, which flow back to the devices that the samples came from."""
    objective = Objective(contrast, optax.sgd(1.0), of="a", whole_batch=True)
    pieces = pmap_layout(make_train_step(objective, ema=frozen, axis_name="data"))
    (one, of_one), (many, of_many) = run(objective, 2, ema=frozen), run(objective, 2, layout=pieces)
    np.testing.assert_allclose(one.params["a"]["w"], many.params["a"]["w"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([m["loss"] for m in of_one], [m["loss"] for m in of_many], rtol=1e-5)
    assert [m["all"] for m in of_many] == [B * (B - 1) / 2] * 2
    assert np.abs(np.asarray(one.params["a"]["w"] - start()["a"]["w"])).max() > 1e-2


# Layouts, checkpoints, logs


traces = []


def reading(params, x, context):
    """loss_a, with a number of an average beside it."""
    traces.append(None)
    loss, aux = loss_a(params, x, context)
    target = context.ema["target"]
    return loss, aux | {"gap": jnp.sum(target["a"]["w"] * target["teacher"]["w"])}


@functools.cache
def layout_of(kind):
    """Two updates of b at every second step, averages by name, of which one is read, under a layout."""
    a, b = pair(times=2, every=2)
    averages = {"target": make_ema(0.5), "sampling": make_ema(0.9)}
    make = functools.partial(make_train_step, [a._replace(loss_fn=reading), b], ema=averages)
    if kind == "pmap":
        return pmap_layout(make(axis_name="data"))
    if kind == "fsdp":
        return fsdp_layout(make(), make_mesh(fsdp=8), min_size=1)
    if kind == "tensor":
        return tensor_layout(make(), make_mesh(tensor=8), [("/w", jax.sharding.PartitionSpec("tensor"))])
    return jit_layout(make(), data_mesh(jax.devices()[: 1 if kind == "one" else 8]))


def fresh():
    return state_from_params(jax.random.key(0), start(), pair(), averages=("target", "sampling"))


def train_to(layout, steps, state, folder, **options):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        if checkpoints.latest() is not None:
            like = layout.abstract(jax.eval_shape(lambda: state))
            state, options = layout.move_state(checkpoints.restore(like)), options | {"placed": True}
        source = lambda seed, step, size: batch_of(step)
        options = {"source": source, "batch_size": B, "log": folder / "log.jsonl"} | options
        return train(
            state, layout, steps=steps, seed=0, checkpoints=checkpoints, progress=False, **{"log_every": 2} | options
        )


@needs_devices
@pytest.mark.parametrize("kind", ["one", "jit", "fsdp", "tensor", "pmap"])
def test_a_run_of_several_objectives_is_the_same_in_every_layout_and_resumes_bitwise(kind, tmp_path):
    layout = layout_of(kind)
    traces.clear()
    whole = train_to(layout, 4, fresh(), tmp_path / "whole", log_every=1)
    train_to(layout, 3, fresh(), tmp_path / "cut")
    rest = train_to(layout, 4, fresh(), tmp_path / "cut")
    assert len(traces) == 1  # to look at the metrics, and to compile
    assert bits(whole[:4]) == bits(rest[:4])
    truth = by_hand(pair(times=2, every=2), 4, simultaneous=False)
    for entry in ("a", "b"):
        np.testing.assert_allclose(whole.params[entry]["w"], truth[entry]["w"], rtol=2e-5, atol=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [(line["b/due"], line["b/loss"] is None) for line in lines] == [(1, False), (0, True)] * 2
    assert all(line["loss"] == line["a/loss"] for line in lines)
    a, teacher = start()["a"]["w"], start()["teacher"]["w"]
    after = by_hand(pair(times=2, every=2), 1, simultaneous=False)["a"]["w"]
    gaps = [jnp.sum(target * teacher) for target in (a, 0.1 * a + 0.9 * after)]  # the average's warm-up
    np.testing.assert_allclose([line["a/gap"] for line in lines[:2]], gaps, rtol=1e-4)
    save_weights(tmp_path / "target.safetensors", averaged_params(rest, "target"))
    loaded = load_weights(tmp_path / "target.safetensors", start())
    assert bits(loaded) == bits(averaged_params(whole, "target"))
    assert bits(loaded["teacher"]) == bits(start()["teacher"])
    saved = Checkpoints(tmp_path / "whole" / "checkpoints", read_only=True).about(4)["leaves"]
    assert sorted(path for path in saved if "teacher" in path) == ["params/teacher/n", "params/teacher/w"]


def test_means_are_over_the_steps_that_made_them():
    each = {"skipped": [0, 0, 1, 0], "loss": [1, 3, 9, 5], "due": [1, 1, 1, 0], "a/loss": [1, 3, 9, 5]}
    each |= {"a/due": [1, 1, 1, 0], "b/x/y": [7, 0, 0, 8], "b/due": [0, 0, 0, 1], "c/loss": [0, 0, 2, 0]}
    each |= {"c/due": [0, 0, 1, 0]}
    found = means({name: np.asarray(value, float) for name, value in each.items()})
    assert (found["loss"], found["a/loss"], found["b/x/y"], found["skipped"]) == (2, 2, 8, 1)
    assert np.isnan(found["c/loss"])
    assert found["b/due"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: {"skipped": m["skipped"]}, r"loss: missing, there are skipped \[\]"),
        (
            lambda m: {"loss": m["loss"][None], "skipped": m["skipped"]},
            r"loss: missing, there are loss \[1\], skipped",
        ),
        (lambda m: {"mean": m["loss"]}, r"loss and skipped: missing, there are mean"),
    ],
)
def test_a_metric_that_is_missing_is_named_before_anything_compiles(change, said, tmp_path, monkeypatch):
    step = make_train_step(pair(), ema=frozen)
    wrong = lambda state, batch: (lambda new, metrics: (new, change(metrics)))(*step(state, batch))
    layout = jit_layout(wrong, data_mesh(jax.devices()[:1]))
    with pytest.raises(ValueError, match=rf"layout: .*`make_train_step`; {said}"):
        train_to(layout, 2, state_from_params(jax.random.key(0), start(), pair()), tmp_path)
    assert layout.step._cache_size() == 0
    assert not (tmp_path / "log.jsonl").read_text() if (tmp_path / "log.jsonl").exists() else True


def test_a_metric_may_not_have_a_name_of_the_logs_own(tmp_path):
    """A mean in the place of the step would make the log no log to the run that goes on with it."""
    loss = lambda params, x, context: (jnp.sum(params["a"]["w"]), {"step": context.step})
    layout = jit_layout(make_train_step(Objective(loss, TX_A, of="a"), ema=frozen), data_mesh(jax.devices()[:1]))
    with pytest.raises(ValueError, match="layout: a step's metric may not be called 'step', a name of the log's own"):
        train_to(layout, 2, state_from_params(jax.random.key(0), start(), Objective(loss, TX_A, of="a")), tmp_path)
    assert layout.step._cache_size() == 0


# Bad input


def errors():
    a, b, x = *pair(), jnp.asarray(batch_of(0))
    make = functools.partial(make_train_step, ema=frozen)
    state = lambda objectives, **options: state_from_params(jax.random.key(0), start(), objectives, **options)
    go = lambda objectives, of=None, **options: make(objectives, **options)(state(of or objectives), x)
    bad = lambda **fields: a._replace(**fields)
    yield lambda: make([]), "objectives: at least one"
    yield lambda: make([a, a]), "name: objective 1 needs its own, .* taken: a; got 'a'"
    yield lambda: make([a, bad(of=("a", "b"))]), "name: objective 1 needs its own, .* got None"
    yield lambda: make([a, b._replace(name="b/c")]), "name: .* without '/'; .* got 'b/c'"
    yield lambda: make(bad(times=0)), "times: of objective a, .* got 0"
    yield lambda: make(bad(every=1.5)), "every of objective a: .* got 1.5"
    yield lambda: make([bad(whole_batch=True), b], accumulate=2), "accumulate: objective a needs the whole batch .* 2"
    yield lambda: make(a, ema={}), "ema: at least one average is needed"
    yield lambda: state(bad(of="c")), "of: params have no entry 'c'; they have a, b, teacher"
    yield lambda: state(bad(of=())), r"of: an objective must train something, got \(\)"
    yield lambda: state(bad(of=lambda params: jax.tree.map(jnp.ones_like, params))), "of: .* a tree of booleans"
    yield lambda: go([a, bad(of=("a", "b"), name="both")], simultaneous=True), "simultaneous: a and both .* train a/w"
    yield lambda: go([a, b], of=[a, b._replace(name="d")]), r"opt_state: .* than a, b; make it by state_from_params"
    yield lambda: go([a, b], of=a), "opt_state: .* than a, b"
    yield lambda: go(a, ema={"x": frozen}), r"ema: the averages x .* has: .*averages=\('x',\)"
    yield lambda: go([a, b._replace(times=3)]), "times: a batch of 16 samples cannot be taken in 3 equal parts"
    gathers = lambda params, x, context: (jnp.sum(context.gather(params["a"]["w"])), {})
    yield lambda: go(bad(loss_fn=gathers)), "gather: objective a must declare it"
    reads = lambda params, x, context: (jnp.sum(context.ema["target"]["a"]["w"]), {})
    yield lambda: go(bad(loss_fn=reads)), "ema: there is no average 'target', there are: none with a name"
    for fields, said in (
        ({"loss_fn": None}, r"loss_fn: of objective a, a function \(params, .* got None"),
        ({"tx": None}, "tx: of objective a, an optimiser of optax is needed, got None"),
        ({"of": 3, "name": "a"}, "of: of objective a, a name, names or a function of params is needed, got 3"),
        ({"of": [3], "name": "a"}, r"of: of objective a, .* got \[3\]"),
    ):
        yield lambda fields=fields: make(bad(**fields)), said
    for answers, said in (
        (lambda loss: loss, r"aux\) with a dict aux is needed, got an array"),
        (lambda loss: (loss, None), r"aux\) with a dict aux is needed, got an array, NoneType"),
        (lambda loss: (loss[None], {}), r"must be a floating-point scalar, got float32 \(1,\)"),
        (lambda loss: (1, {}), r"must be a floating-point scalar, got int32 \(\)"),
        (lambda loss: (loss, {"due": 0.5}), "aux: of objective a, 'due' is a metric of the step itself"),
        (lambda loss: (loss, {"loss": loss}), "aux: of objective a, 'loss' is a metric of the step itself"),
    ):
        loss_fn = lambda params, x, context, answers=answers: answers(jnp.sum(params["a"]["w"]))
        yield lambda loss_fn=loss_fn: go(bad(loss_fn=loss_fn)), said
    yield lambda: go(bad(of=("a", "teacher"), name="a")), "of: teacher/n is int32 and cannot be trained; leave it out"
    for wrong in (None, 0.9, {"x": None}):
        yield lambda wrong=wrong: make(a, ema=wrong), "ema: at least one average is needed, as of make_ema"
    for wrong in ("target", ("x", "x"), (1,), ("x/y",), ("",)):
        yield lambda wrong=wrong: state(a, averages=wrong), "averages: different names without '/' are needed"
    yield lambda: make(a, ema={"x/y": frozen}), "averages: different names without '/' are needed"
    yield lambda: averaged_params(state(a), "x"), "name: the state has no average 'x'; there are: "
    yield lambda: averaged_params(state(a, averages=("y",)), "x"), "no average 'x'; there are: y"


@pytest.mark.parametrize("averages", [{}, {"slow": frozen}])
def test_a_loss_may_look_whether_there_is_an_average(averages):
    def loss(params, x, context):
        there = ("slow" in context.ema, context.ema.get("slow") is not None, "fast" in context.ema)
        return jnp.sum(params["a"]["w"]), {"there": jnp.float32(sum(there)), "none": context.ema.get("fast", 7.0)}

    _, (metrics,) = run(Objective(loss, TX_A, of="a"), 1, ema=averages or frozen)
    assert (metrics["there"], metrics["none"]) == (2 * len(averages), 7)


def test_what_does_not_fit_is_named():
    for call, said in errors():
        with pytest.raises(ValueError, match=said):
            call()
    for wrong in (loss_a, [loss_a]):
        with pytest.raises(TypeError, match=r"objectives: .* got function"):
            make_train_step(wrong, ema=frozen)


# As a user writes it


SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
slow = pytest.mark.slow
USES = [
    ("gan_two_moons", "jit", {}),
    pytest.param("gan_two_moons", "pmap", {}, marks=slow),
    pytest.param("gan_two_moons", "jit", {"alternate": True}, marks=slow),
    pytest.param("gan_two_moons", "pmap", {"alternate": True}, marks=slow),
    pytest.param("consistency_two_moons", "jit", {"steps": 16}, marks=slow),
    pytest.param("consistency_two_moons", "pmap", {"steps": 16}, marks=slow),
]


@needs_devices
@pytest.mark.parametrize(("script", "kind", "options"), USES)
def test_a_gan_and_consistency_training_are_short_and_resume_bitwise(script, kind, options, tmp_path):
    path = SCRIPTS / f"{script}.py"
    assert sum(bool(line.strip()) for line in path.read_text().splitlines()) < 60
    layout, state = runpy.run_path(str(path))["make"](pmap=kind == "pmap", **options)
    places = {"source": data.two_moons(), "log_every": 1}
    whole = train_to(layout, 6, state, tmp_path / "whole", **places)
    train_to(layout, 3, state, tmp_path / "cut", **places)
    rest = train_to(layout, 6, state, tmp_path / "cut", **places)
    assert bits(whole[:4]) == bits(rest[:4])
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) and line["skipped"] == 0 for line in lines)
    if script == "consistency_two_moons":
        assert [line["intervals"] for line in lines] == [10, 10, 20, 20, 40, 40]
