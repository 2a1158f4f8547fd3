"""Flow maps as runs: `diffjax distill`, `diffjax train --loss.name` a flow map's, and what is made of such a run."""

import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import call, covers, done, refused
from nets import perturbed

import diffjax as dj
from diffjax import config as c, flow_maps, losses, networks, process as processes
from diffjax.cli import Execution, main
from diffjax.data import mixture
from diffjax.training import Checkpoints, Context, Objective, make_ema, make_train_step, state_from_params

CLASSES, SCALE = 8, 2.0
X0 = jax.random.normal(jax.random.key(7), (6, 2))
LABELS = jnp.array([0, 3, 7, 1, 1, 5], jnp.int32)
KEY = jax.random.key(4)
ROWS = {"index": jnp.arange(6), "total": 6}
SMALL = c.NetworkConfig("mlp", width=8, depth=1)


# --- each loss by name, against the library's call ---


def _mean_flow(d, p, key, cond, teacher, *, improved=False):
    inside = None if teacher is not None else flow_maps.GuidedVelocity(CLASSES, SCALE)
    pairs = flow_maps.PartlyEqual(flow_maps.SortedPairs(processes.LogitNormalTimes(d.process, 0.3, 0.8)), 0.25)
    given = {"pairs": pairs, "teacher": teacher, "guidance": inside, "improved": improved, "power": 0.5, "offset": 0.01}
    return flow_maps.mean_flow_loss(d, p, key, X0, cond, **given, **ROWS)


def _shortcut(d, p, key, cond, teacher):
    given = {"target_params": average_of(p), "finest": 8, "share": 0.5}
    return flow_maps.shortcut_loss(d, p, key, X0, cond, **given, **ROWS)


def _consistency(d, p, key, cond, teacher):
    levels = flow_maps.ict_levels(jnp.asarray(STEP), STEPS, s0=5, s1=40)
    return flow_maps.consistency_loss(
        d,
        p,
        key,
        X0,
        cond,
        levels=flow_maps.EDMLevels(d.process, levels, lognormal=(-1.1, 2.0)),
        teacher=teacher,
        solver="heun",
        penalty=losses.PseudoHuber(0.3),
        weighting=flow_maps.OverGap(),
        **ROWS,
    )


def _continuous(d, p, key, cond, teacher):
    warm_up = (STEP + 1) / (0.5 * STEPS)
    times = processes.LognormalTimes(d.process, -0.5, 1.1)
    given = {"times": times, "teacher": teacher, "warm_up": warm_up, "c": 0.2}
    return flow_maps.continuous_consistency_loss(d, p, key, X0, cond, **given, **ROWS)


def _progressive(d, p, key, cond, teacher):
    """The first stage, from eight steps of the guided denoiser to two."""
    grid, fine = np.linspace(1.0, 0.0, 3), np.linspace(1.0, 0.0, 9)
    given = {"grid": grid, "teacher": teacher, "teacher_grid": fine, "teacher_steps": 4}
    return flow_maps.progressive_loss(d, p, key, X0, cond, **given, **ROWS)


STEP, STEPS = 9, 40
CASES = {
    "mean_flow": ({"mean": 0.3, "std": 0.8, "equal": 0.25, "power": 0.5, "offset": 0.01}, _mean_flow),
    "improved_mean_flow": (
        {"mean": 0.3, "std": 0.8, "equal": 0.25, "power": 0.5, "offset": 0.01},
        lambda *a: _mean_flow(*a, improved=True),
    ),
    "shortcut": ({"finest": 8, "share": 0.5}, _shortcut),
    "consistency": ({"fewest": 5, "most": 40, "c": 0.3}, _consistency),
    "continuous_consistency": ({"mean": -0.5, "std": 1.1, "warm_up": 0.5, "c": 0.2}, _continuous),
    "progressive": ({"least": 1, "first": 8, "teacher_steps": 4}, _progressive),
}
GUIDED = ("mean_flow", "improved_mean_flow")
"""Those whose target has the guidance when they are trained from data."""


def average_of(params):
    return jax.tree.map(lambda leaf: 0.5 * leaf, params)


def configured(name, teacher=None, **numbers):
    """A conditional run of a small network, with the defaults of its loss as the command line gives them."""
    row = c.LOSSES[name]
    guided = teacher is not None or name in GUIDED
    config = dataclasses.replace(
        c.PRESETS["toy2d"],
        steps=STEPS * (2 if name == "progressive" else 1),
        network=SMALL,
        loss=c.LossConfig(name, **numbers),
        guidance=c.GuidanceConfig(scale=SCALE if guided else 1.0, dropout=0.3),
        teacher=teacher,
        data=c.DataConfig("mixture"),
    )
    if teacher is not None:
        config = dataclasses.replace(config, sampler=c.SamplerConfig("jump", 1, "angle"))
        clock = row.defaults.get("parameterisation.clock", "logsnr")
        return dataclasses.replace(config, parameterisation=c.ParameterisationConfig(clock=clock))
    return c.with_loss_defaults(config, {"guidance.scale"})


OFTEN = ("mean_flow", "progressive-teacher")
"""One from data and one from a teacher; the rest are slow."""


def each_case():
    for name, row in c.LOSSES.items():
        for teacher in (None, "teacher") if row.flow_map else ():
            words = f"{name}-teacher" if teacher else name
            if row.distils if teacher else not row.needs_teacher:
                yield pytest.param(name, teacher, id=words, marks=() if words in OFTEN else pytest.mark.slow)


@pytest.mark.parametrize(("name", "teacher"), [*each_case()])
def test_a_flow_map_by_name_trains_as_the_library_call_does(name, teacher):
    """Loss and gradient, with labels: hidden from some, and guided where the target is, without a teacher."""
    numbers, by_hand = CASES[name]
    parts = c.build(configured(name, teacher, **numbers), CLASSES, 0)
    params = parts.init(jax.random.key(1), X0[:1], LABELS[:1])
    params = perturbed(params, size=0.3)
    own = lambda params: params["network"] if teacher else params

    def hand(params, context):
        hide, key = jax.random.split(context.key)
        of, cond = None, LABELS
        if teacher:
            given = dj.make_denoiser(parts.diffusion, params["teacher"], cond)
            of = dj.classifier_free(given, CLASSES, SCALE)
        else:
            cond = losses.drop_condition(hide, LABELS, CLASSES, 0.3, index=context.index)
        return by_hand(parts.diffusion, own(params), key, cond, of)[0]

    def both(params):
        ema = {"decay": jax.lax.stop_gradient(average_of(params))}
        context = Context(KEY, step=jnp.asarray(STEP), ema=ema, **ROWS)
        run = jax.value_and_grad(lambda p: parts.loss(p, (X0, LABELS), context)[0])(params)
        return run, jax.value_and_grad(hand)(params, context)

    (value, slope), (wanted, wanted_slope) = jax.jit(both)(params)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    slope, wanted_slope = own(slope), own(wanted_slope)
    size = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(wanted_slope))
    assert size > 1e-4
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * size)
    jax.tree.map(close, slope, wanted_slope)


def test_every_flow_map_has_a_case_with_all_of_its_numbers():
    assert list(CASES) == [name for name, row in c.LOSSES.items() if row.flow_map]
    for name, (numbers, _) in CASES.items():
        own = c.numbers_of(c.LOSSES[name])
        assert set(numbers) == set(own), name
        assert all(value != own[number][1] for number, value in numbers.items() if (name, number) != SAME), name


SAME = ("progressive", "least")  # of two steps there would be but one stage
DEFAULTS = {
    "mean_flow": {"mean": -0.4, "std": 1.0, "equal": 0.5, "power": 0.0, "offset": 0.001},
    "improved_mean_flow": {"mean": -0.4, "std": 1.0, "equal": 0.5, "power": 0.0, "offset": 0.001},
    "shortcut": {"finest": 128, "share": 0.25},
    "consistency": {"fewest": 10, "most": 160, "c": 0.00054},
    "continuous_consistency": {"mean": -1.0, "std": 1.4, "warm_up": 0.1, "c": 0.1},
    "progressive": {"least": 1, "first": 16, "teacher_steps": 2},
}
"""Flow map -> its numbers where none is given."""


def test_the_defaults_of_a_flow_map_are_these():
    found = {name: c.numbers_of(row) for name, row in c.LOSSES.items() if row.flow_map}
    assert {name: {key: value for key, (_, value) in of.items()} for name, of in found.items()} == DEFAULTS


def test_the_levels_of_a_consistency_model_need_steps_to_double_in():
    loss = c.LOSSES["consistency"](fewest=4, most=32)  # 4, 8, 16, 32
    loss.check_steps(4)
    with pytest.raises(ValueError, match="steps: at least 4 are needed"):
        loss.check_steps(3)


# --- training from data ---


TINY = ["--network.width", "8", "--network.depth", "1", "--batch-size", "16", "--samples", "8"]


def by_hand(out, loss, steps=2):
    """The parameters and averages after some updates on the mixture by a loss `(params, x0, context)`."""
    config = c.from_json((out / "config.json").read_text())
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 2, steps, 0.0)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))
    averages = {"decay": make_ema(0.999)}
    params = c.fresh_state(c.build_run(config, c.build_data(config.data).samples)).params
    state = state_from_params(jax.random.fold_in(jax.random.key(0), 1), params, Objective(loss, tx), averages=averages)
    step = jax.jit(make_train_step(Objective(loss, tx), ema=averages))
    for n in range(steps):
        state, _ = step(state, jax.tree.map(jnp.asarray, mixture(components=8, std=0.1)(0, n, 16)))
    return state


def state_of(out):
    """The state of a run's newest checkpoint."""
    config = c.from_json((out / "config.json").read_text())
    like = c.fresh_state(c.build_run(config, c.build_data(config.data).samples))
    with Checkpoints(out / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(like)


def trained(capfd, *argv):
    """The output of a command line that trains, whose bar is on stderr."""
    code, out, err = call(capfd, *argv)
    assert code == 0, err
    return out


def _split(context):
    return jax.random.split(context.key)[1], {"index": context.index, "total": context.total}


FROM_DATA = {
    "mean_flow": lambda d, p, x0, key, context, rows: flow_maps.mean_flow_loss(
        d,
        p,
        key,
        x0,
        pairs=flow_maps.PartlyEqual(flow_maps.SortedPairs(processes.LogitNormalTimes(dj.Cosine(), -0.4, 1.0)), 0.5),
        power=0.0,
        **rows,
    ),
    "shortcut": lambda d, p, x0, key, context, rows: flow_maps.shortcut_loss(
        d, p, key, x0, target_params=context.ema["decay"], finest=128, share=0.25, **rows
    ),
    "consistency": lambda d, p, x0, key, context, rows: flow_maps.consistency_loss(
        d,
        p,
        key,
        x0,
        levels=flow_maps.EDMLevels(
            dj.Cosine(), flow_maps.ict_levels(context.step, 2, s0=10, s1=20), lognormal=(-1.1, 2.0)
        ),
        penalty=losses.PseudoHuber(0.00054),
        weighting=flow_maps.OverGap(),
        **rows,
    ),
    "continuous_consistency": lambda d, p, x0, key, context, rows: flow_maps.continuous_consistency_loss(
        d, p, key, x0, times=processes.LognormalTimes(dj.Cosine(), -1.0, 1.4), warm_up=1.0, c=0.1, **rows
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "shortcut" else pytest.mark.slow) for name in FROM_DATA]
)
def test_a_run_of_a_flow_map_equals_the_same_run_by_library_calls(name, tmp_path, capfd):
    """Two updates, the samples that it ends with, and the run read back."""
    out = tmp_path / "run"
    given = ["--layout", "jit", "--devices", "1", "--steps", "2", "--loss.name", name, "--out", out]
    if name == "consistency":  # whose levels double once a step at the most
        assert call(capfd, "train", "toy2d", *TINY, *given)[::2] == (
            2,
            "diffjax: steps: at least 5 are needed, for the levels to double from 10 to 160, got 2\n",
        )
        assert not out.exists()
        given += ["--loss.most", "20"]
    trained(capfd, "train", "toy2d", *TINY, *given)
    config = c.from_json((out / "config.json").read_text())
    line = name == "shortcut"
    assert (config.sampler.name, config.sampler.steps) == ("jump", 2)
    assert config.sampler.grid == ("line" if line else "angle")
    assert config.sampler.gamma == (1.0 if "consistency" in name else None)
    assert config.parameterisation.clock == ("logsnr" if name in ("shortcut", "consistency") else "angle")
    network = dj.from_linen(networks.MLP(width=8, depth=1))
    d = dj.Diffusion(network, dj.Cosine(), dj.VPrediction(clock=config.parameterisation.clock))

    def loss(params, batch, context):
        key, rows = _split(context)
        return FROM_DATA[name](d, params, batch[0], key, context, rows)

    wanted, found = by_hand(out, loss), state_of(out)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6)
    jax.tree.map(close, found.params, wanted.params)
    ema = found.ema["decay"] if line else found.ema
    jax.tree.map(close, ema, wanted.ema["decay"])
    loaded = dj.load(out)
    F = dj.make_flow_map(
        d, ema, knows=processes.Dyadic(processes.line_grid(dj.Cosine(), 128)) if line else _pairs(name)
    )
    xT = jax.random.normal(KEY, (4, 2))
    stepper = dj.Jump(gamma=1.0) if "consistency" in name else dj.Jump()
    ts = np.array([1.0, processes.line_grid(dj.Cosine(), 2)[1] if line else 0.5, 0.0])
    np.testing.assert_allclose(
        dj.sample(KEY, loaded.process, loaded.denoiser(), xT, loaded.ts, loaded.stepper),
        dj.sample(KEY, dj.Cosine(), F, xT, ts, stepper),
        rtol=1e-5,
        atol=1e-5,
    )


def _pairs(name):
    if name == "shortcut":
        return processes.Dyadic(tuple(processes.line_grid(dj.Cosine(), 128).tolist()))
    return "zero" if "consistency" in name else "any"


# --- distillation by stages ---

ONE_DEVICE = ["--layout", "jit", "--devices", "1"]
STAGES = ["--loss.first", "4", "--updates", "4", "--guidance", "2", "--learning-rate", "0.01", "--batch-size", "24"]
MORE = ["--seed", "3", "--samples", "8", "--save-every", "2", "--keep", "9", "--log-every", "1", *ONE_DEVICE]


def distill(teacher, out):
    """Two stages of four updates, from four steps of the teacher to one."""
    return ["distill", teacher, *STAGES, *MORE, "--out", out]


@pytest.fixture(scope="module")
def student(toy_run, tmp_path_factory):
    """A teacher (a copy, so that it may be moved away) and a student, side by side; nobody may change them."""
    folder = tmp_path_factory.mktemp("distilled")
    shutil.copytree(toy_run, folder / "teacher")
    assert main([str(word) for word in distill(folder / "teacher", folder / "student")]) == 0
    return folder / "student"


@covers(
    "distill", "run", "out", "loss", "steps", "updates", "guidance", "learning_rate", "batch_size", "seed", "save_every"
)
def test_a_student_has_its_teacher_s_configuration_but_for_what_distilling_changes(toy_run, student):
    teacher, own = (c.from_json((run / "config.json").read_text()) for run in (toy_run, student))
    changes = {path: value for path, _, value in c.differences(teacher, own)}
    assert changes == {
        "name": "toy2d-progressive",
        "steps": 8,
        "batch_size": 24,
        "seed": 3,
        "ema_decay": 0.0,
        "teacher": "../teacher",
        "loss.name": "progressive",
        "loss.least": 1,
        "loss.first": 4,
        "optimiser.learning_rate": 0.01,
        "guidance.scale": 2.0,
        "sampler.name": "jump",
        "sampler.steps": 1,
        "sampler.grid": "angle",
    }
    assert {path.name for path in student.iterdir()} >= {"config.json", "data.json", "results.json", "samples.png"}


@pytest.mark.slow
def test_a_student_equals_its_stages_by_library_calls(student):
    """Four updates towards two steps of the guided teacher at once, then four towards two of that student's."""
    network = dj.from_linen(networks.MLP(width=16, depth=1, num_classes=CLASSES))
    d = dj.Diffusion(network, dj.Cosine(), dj.VPrediction())
    first = dj.load(student.parent / "teacher").params
    params, grids, key = first, [np.linspace(1.0, 0.0, n + 1) for n in (4, 2, 1)], fresh(student).key
    for stage, (fine, grid) in enumerate(itertools.pairwise(grids)):

        def loss(params, batch, context, stage=stage, fine=fine, grid=grid):
            key, rows = _split(context)
            if stage:
                teacher = dj.make_flow_map(d, params["teacher"], batch[1], knows=fine)
            else:
                teacher = dj.classifier_free(dj.make_denoiser(d, params["teacher"], batch[1]), CLASSES, SCALE)
            given = {"grid": grid, "teacher": teacher, "teacher_grid": fine}
            return flow_maps.progressive_loss(d, params["network"], key, *batch, **given, **rows)

        schedule = optax.warmup_cosine_decay_schedule(0.0, 0.01, 2, 4, 0.0)
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))
        objective = Objective(loss, tx, "network")
        state = state_from_params(key, {"network": params, "teacher": params}, objective)
        state = state._replace(step=jnp.asarray(4 * stage, state.step.dtype))
        step = jax.jit(make_train_step(objective, ema=make_ema(0.0)))
        for n in range(4 * stage, 4 * stage + 4):
            state, _ = step(state, jax.tree.map(jnp.asarray, mixture(components=8, std=0.1)(3, n, 24)))
        params, key = state.params["network"], state.key
    found = state_of(student)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, found.params["network"], params)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), params, first)
    assert max(jax.tree.leaves(moved)) > 0.02


def fresh(run):
    config = c.from_json((run / "config.json").read_text())
    return c.fresh_state(c.build_run(config, c.build_data(config.data).samples))


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(6, marks=pytest.mark.slow)])
def test_a_student_that_was_cut_goes_on_to_the_same_bits(step, student, capfd):
    """Within the first stage, between the two, and within the second."""
    cut = student.parent / f"cut-{step}"
    shutil.copytree(student, cut)
    with Checkpoints(cut / "checkpoints") as checkpoints:
        checkpoints.rollback(step)
    out = done(capfd, "sample", cut, "--n", "8", "--out", cut / "some.npz")
    assert f"step {step} of 8" in out
    assert ("stage 1 of 2: sampling steps 2" if step <= 4 else "stage 2 of 2: sampling steps 1") in out
    out = trained(capfd, *distill(student.parent / "teacher", cut))
    assert f"from step {step}, saved before" in out
    assert ("stage 1 of 2: sampling steps 2" in out) == (step < 4)
    a, b = state_of(student), state_of(cut)
    a, b = a._replace(key=jax.random.key_data(a.key)), b._replace(key=jax.random.key_data(b.key))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_stages_follow_each_other_on_the_cores_of_a_machine(toy_run, tmp_path, capfd):
    """Under pmap, the default there: the second stage begins with what the first one returns, or with a checkpoint."""
    argv = [
        "distill",
        toy_run,
        *STAGES,
        "--samples",
        "8",
        "--layout",
        "pmap",
        "--devices",
        "2",
        "--out",
        tmp_path / "a",
    ]
    out = trained(capfd, *argv)
    assert "stage 2 of 2: sampling steps 1" in out
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with Checkpoints(tmp_path / "b" / "checkpoints") as checkpoints:
        checkpoints.rollback(4)
    assert "from step 4, saved before" in trained(capfd, *argv[:-1], tmp_path / "b")
    a, b = state_of(tmp_path / "a"), state_of(tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def draw(run, n, labels, ts, seed=0):
    """n samples of the student for labels, by its flow map and no guidance."""
    network = dj.from_linen(networks.MLP(width=16, depth=1, num_classes=CLASSES))
    d = dj.Diffusion(network, dj.Cosine(), dj.VPrediction())
    F = dj.make_flow_map(d, state_of(run).ema["network"], labels, knows=ts)
    return dj.sample_n(jax.random.key(seed), dj.Cosine(), F, (2,), n, ts=ts, stepper=dj.Jump())


@pytest.mark.slow
def test_samples_of_a_student_are_those_of_its_map_in_one_step(student, tmp_path, capfd):
    done(capfd, "sample", student, "--n", "6", "--label", "3", "--seed", "5", "--out", tmp_path / "a.npz")
    labels = jnp.full(6, 3, jnp.int32)
    wanted = draw(student, 6, labels, np.array([1.0, 0.0]), 5)
    np.testing.assert_allclose(np.load(tmp_path / "a.npz")["x"], wanted, rtol=1e-5, atol=1e-6)
    run = dj.load(student)
    assert len(run.ts) == 2
    xT = jax.random.normal(KEY, (6, 2))
    of = lambda labels: dj.sample(None, run.process, run.denoiser(labels), xT, run.ts, run.stepper)
    np.testing.assert_allclose(of(None), of(jnp.full(6, CLASSES)), rtol=1e-6)
    assert np.abs(of(labels) - of(labels + 1)).max() > 1e-3
    err = refused(capfd, "sample", student, "--steps", "2", "--out", tmp_path / "b.npz")
    assert "does not know the step from t = 1 to s = 0.5" in err
    assert "take --sampler.name jump --sampler.grid angle --steps 1" in err
    err = refused(capfd, "sample", student, "--sampler.name", "ddim", "--out", tmp_path / "b.npz")
    assert "progressive is not sampled by ddim" in err
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.slow
def test_a_student_is_measured_beside_its_teacher_while_that_is_there(student, tmp_path, capfd):
    shutil.copytree(student.parent / "teacher", tmp_path / "teacher")
    shutil.copytree(student, tmp_path / "student")
    out = done(capfd, "evaluate", tmp_path / "student", "--n", "24")
    name = "sliced Wasserstein distance to held out: samples"
    assert out.count(f"teacher, 4 steps of dpmpp2m: {name}") == 1
    assert [line.startswith(name) for line in out.splitlines()].count(True) == 1
    value = lambda text, start: next(line.rsplit(maxsplit=1)[1] for line in text.splitlines() if line.startswith(start))
    alone = done(capfd, "evaluate", tmp_path / "teacher", "--n", "24")
    assert value(out, f"teacher, 4 steps of dpmpp2m: {name}") == value(alone, name) != value(out, name)
    shutil.rmtree(tmp_path / "teacher")
    out = done(capfd, "evaluate", tmp_path / "student", "--n", "24")
    assert "teacher: " in out
    assert "no longer exists; only the student is measured" in out
    assert "of dpmpp2m" not in out


def test_a_map_has_its_guidance_built_in(student, toy_run, capfd):
    for option in (["--guidance", "2"], ["--guidance.name", "projected"], ["--autoguidance", str(toy_run)]):
        for command in ("sample", "evaluate"):
            err = refused(capfd, command, student, *option)
            assert "guidance: this run is a flow map, which has its guidance built in" in err
            assert "--guidance.scale" in err
    err = refused(capfd, "sample", toy_run, "--autoguidance", student)
    assert "autoguidance: a run on the same data and process is needed, got a flow map" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--loss.name", "shortcut"], ["loss.name", "'shortcut'", "progressive"]),
        (
            ["--loss.name", "mean_flow"],
            ["loss.name: mean_flow differentiates the network", "--parameterisation.clock angle", "progressive"],
        ),
        (["--loss.name", "progressiv"], ["progressiv", "progressive"]),
        (["--steps", "0"], ["steps: at least 1, got 0"]),
        (["--updates", "0"], ["updates: at least 1, got 0"]),
        (["--batch-size", "0"], ["batch_size: at least 1, got 0"]),
        (["--loss.first", "6"], ["loss.first: 1 times 2, 4, 8, ... is needed, got 6"]),
        (["--loss.teacher-steps", "3"], ["loss.teacher_steps: 2, 4, 8, ... up to 16 is needed, got 3"]),
        (["--loss.first", "4", "--loss.teacher-steps", "8"], ["loss.teacher_steps: 2, 4, 8, ... up to 4", "got 8"]),
        (["--loss.least", "2"], ["--loss.least"]),
        (["--guidance", "-1"], ["guidance.scale", "-1"]),
    ],
)
def test_what_cannot_be_distilled_is_one_line_and_writes_nothing(options, words, toy_run, tmp_path, capfd):
    err = refused(capfd, "distill", toy_run, *options, "--out", tmp_path / "out")
    for word in words:
        assert word in err
    assert not (tmp_path / "out").exists()


def test_a_teacher_is_a_finished_denoiser(student, toy_run, tmp_path, capfd):
    out = ["--out", tmp_path / "out"]
    assert "run: nowhere: no such folder" in refused(capfd, "distill", "nowhere", *out)
    assert "holds no run" in refused(capfd, "distill", tmp_path, *out)
    err = refused(capfd, "distill", student, *out)
    assert "run: the teacher must be a denoiser, got a flow map trained by progressive" in err
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "data.json"):
        shutil.copy(toy_run / name, bare / name)
    code, _, err = call(capfd, "distill", bare, *out, *ONE_DEVICE)
    assert code
    assert "checkpoints: no such folder" in err
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | {"sampler": config["sampler"] | {"name": "cfgpp"}}))
    assert "guidance: the teacher samples by cfgpp" in refused(capfd, "distill", bare, *out)
    plain = config["data"] | {"conditional": False}
    (bare / "config.json").write_text(json.dumps(config | {"data": plain}))
    samples = json.loads((bare / "data.json").read_text())
    (bare / "data.json").write_text(json.dumps(samples | {"classes": None}))
    assert "guidance: the teacher knows no classes, got 2.0" in refused(capfd, "distill", bare, "--guidance", "2", *out)
    assert not (tmp_path / "out").exists()


def test_a_student_in_stages_keeps_their_length(student, capfd):
    """More updates would move the end of the first stage into what is trained already."""
    argv = distill(student.parent / "teacher", student)
    argv[argv.index("--updates") + 1] = "8"
    assert "holds a run with steps 8, not 16" in refused(capfd, *argv)


EXECUTION = {
    "layout": "fsdp",
    "split": 2,
    "accumulate": 3,
    "dry_run": True,
    "devices": 4,
    "save_every": 5,
    "save_seconds": 6.5,
    "keep": 7,
    "accept_data": True,
    "log_every": 8,
    "sample_every": 9,
    "samples": 10,
    "tensorboard": True,
    "profile": (1, 2),
    "compile_cache": "none",
}


@covers("distill", *EXECUTION, "hosts")
def test_a_student_is_trained_as_the_options_of_train_say(toy_run, monkeypatch):
    parsed = []
    monkeypatch.setattr("diffjax.cli._distill.run_config", parsed.append)
    words = ["--num-processes", "1"]
    for name, value in EXECUTION.items():
        values = [] if value is True else value if isinstance(value, tuple) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    assert main(["distill", str(toy_run), *words]) == 0
    (found,) = parsed
    assert {name: getattr(found, name) for name in EXECUTION} == EXECUTION
    assert {*EXECUTION, "hosts", "out"} == {field.name for field in dataclasses.fields(Execution)}
    assert (found.hosts.num_processes, found.out) == (1, f"{toy_run}-progressive")


def test_the_default_number_of_first_steps_is_the_last_times_a_power_of_two(toy_run, monkeypatch):
    parsed = []
    monkeypatch.setattr("diffjax.cli._distill.run_config", parsed.append)
    for steps, first in ((1, 16), (2, 16), (3, 24), (4, 16), (5, 20), (8, 32)):
        assert main(["distill", str(toy_run), "--steps", str(steps)]) == 0
        config = parsed.pop().config
        assert (config.loss.least, config.loss.first, config.sampler.steps) == (steps, first, steps)


@pytest.mark.parametrize(
    ("least", "first", "teacher_steps", "students"),
    [(1, 16, 2, [8, 4, 2, 1]), (1, 64, 8, [8, 4, 2, 1]), (4, 64, 8, [8, 4]), (3, 12, 4, [3]), (2, 8, 2, [4, 2])],
)
def test_the_first_student_replaces_the_teachers_steps_and_each_other_halves(
    least, first, teacher_steps, students, monkeypatch
):
    grids = []
    record = lambda *_, grid, teacher_grid, **__: grids.append((teacher_grid, grid))  # whose ratio the loss checks
    monkeypatch.setattr(flow_maps, "progressive_loss", record)
    config = configured("progressive", teacher="t", least=least, first=first, teacher_steps=teacher_steps)
    sampler = dataclasses.replace(config.sampler, steps=least)
    config = dataclasses.replace(config, steps=STEPS * len(students), sampler=sampler)
    for stage, steps in enumerate(students):
        parts = c.build(config, CLASSES, stage)
        assert (parts.objective.stages, parts.objective.steps_of(stage)) == (len(students), steps)
        params = parts.init(jax.random.key(1), X0[:1], LABELS[:1])
        parts.loss(params, (X0, LABELS), Context(KEY, step=jnp.asarray(STEP), **ROWS))
    for (teacher_grid, grid), before, steps in zip(grids, [first, *students[:-1]], students, strict=True):
        np.testing.assert_allclose(teacher_grid, np.linspace(1, 0, before + 1), atol=1e-6)
        np.testing.assert_allclose(grid, np.linspace(1, 0, steps + 1), atol=1e-6)


# --- several numbers of steps, and other samplers ---


@pytest.fixture(scope="module")
def mean_flow(tmp_path_factory):
    """A run that knows all pairs of times."""
    out = tmp_path_factory.mktemp("runs") / "mean_flow"
    argv = ["train", "toy2d", *TINY, *ONE_DEVICE, "--steps", "2", "--loss.name", "mean_flow", "--out", out]
    assert main([str(word) for word in argv]) == 0
    return out


@pytest.mark.slow
def test_several_numbers_of_steps_are_drawn_and_measured_side_by_side(mean_flow, tmp_path, capfd):
    done(capfd, "sample", mean_flow, "--n", "4", "--steps", "1", "2", "--out", tmp_path / "a.npz")
    assert {path.name for path in tmp_path.iterdir()} == {"a-1.npz", "a-2.npz"}
    run = dj.load(mean_flow)
    for steps in (1, 2):
        wanted = dj.sample_n(
            jax.random.key(0),
            run.process,
            run.denoiser(),
            (2,),
            4,
            ts=np.linspace(1.0, 0.0, steps + 1),
            stepper=dj.Jump(),
        )
        np.testing.assert_allclose(np.load(tmp_path / f"a-{steps}.npz")["x"], wanted, rtol=1e-5, atol=1e-6)
    out = done(capfd, "evaluate", mean_flow, "--n", "8", "--steps", "1", "2")
    for name in ("1 step", "2 steps"):
        assert out.count(f"\n{name}: sliced Wasserstein distance to held out: samples") == 1


@pytest.mark.slow
def test_a_map_of_all_pairs_is_a_denoiser_for_other_samplers(mean_flow, tmp_path, capfd):
    method = ["--sampler.name", "dpmpp2m", "--sampler.grid", "logsnr", "--steps", "3"]
    done(capfd, "sample", mean_flow, "--n", "4", *method, "--out", tmp_path / "a.npz")
    run = dj.load(mean_flow)
    wanted = dj.sample_n(
        jax.random.key(0),
        run.process,
        run.denoiser(),
        (2,),
        4,
        ts=dj.logsnr_grid(run.process, 3),
        stepper=dj.DPMpp2M(),
    )
    np.testing.assert_allclose(np.load(tmp_path / "a.npz")["x"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["mean_flow", "--parameterisation.clock", "logsnr"],
            ["parameterisation.clock: mean_flow", "got logsnr; --parameterisation.clock angle"],
        ),
        (["shortcut", "--parameterisation.name", "eps"], ["parameterisation.name: shortcut", "take v, x0"]),
        (["shortcut", "--loss.finest", "1"], ["loss.finest: a power of two from 2 on, got 1"]),
        (["shortcut", "--sampler.steps", "3"], ["shortcut is not sampled by jump on 3 steps of line", "1, 2, 4"]),
        (
            ["shortcut", "--parameterisation.data-std", "0.5"],
            ["shortcut is not sampled by jump on 2 steps", "--sampler.data-std"],
        ),
        (["consistency", "--sampler.gamma", "0"], ["consistency is not sampled by jump", "--sampler.gamma 1"]),
        (["consistency", "--sampler.name", "ddim"], ["consistency is not sampled by ddim", "--sampler.name jump"]),
        (["shortcut", "--data.conditional", "--guidance.scale", "2"], ["guidance.scale: shortcut has no guidance"]),
        (
            ["mean_flow", "--data.conditional", "--guidance.name", "projected"],
            ["guidance.name: mean_flow", "got projected"],
        ),
        (["progressive"], ["loss.name: progressive needs a teacher", "diffjax distill RUN --loss.name progressive"]),
    ],
    ids=" ".join,
)
def test_what_a_flow_map_cannot_be_is_refused_before_training(options, words, tmp_path, capfd):
    err = refused(capfd, "train", "toy2d", "--network.width", 8, "--loss.name", *options, "--out", tmp_path / "run")
    for word in words:
        assert word in err
    assert not (tmp_path / "run").exists()


def test_a_loss_s_own_sampler_may_be_named(tmp_path, monkeypatch):
    """--sampler.name jump, which is the default, changes none of the other defaults."""
    parsed = []
    monkeypatch.setattr("diffjax.cli._train.run_config", lambda options, given: parsed.append(options.config.sampler))
    for more in ([], ["--sampler.name", "jump"], ["--sampler.steps", "4"]):
        assert main(["train", "toy2d", "--loss.name", "consistency", *more]) == 0
    assert parsed[0] == parsed[1] == c.SamplerConfig("jump", 2, "angle", gamma=1.0)
    assert parsed[2] == dataclasses.replace(parsed[0], steps=4)


def test_what_distils_a_teacher_and_what_needs_one():
    """A loss that learns from data alone (improved MeanFlow, shortcut, ECT) is no method of `diffjax distill`."""
    assert set(c.DISTILLERS) == {"progressive", "consistency", "continuous_consistency", "mean_flow"}
    assert {name for name, row in c.LOSSES.items() if row.needs_teacher} == {"progressive"}
