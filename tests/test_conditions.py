"""Runs conditioned on a text, on a text and a label, or on numbers: the command line does what library calls do."""

import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call, covers, done, refused
from test_texts import folder_of

import diffjax as dj
from diffjax import config as c
from diffjax.cli import Sample
from diffjax.cli._prompts import asked_for
from diffjax.config._conditions import null_condition, take, with_presence
from diffjax.config._text_encoder import TEXTS
from diffjax.data import digit_scenes, load_texts, shapes
from diffjax.interop import count_tokens
from diffjax.losses import drop_condition
from diffjax.networks import Cascade, Text

pytest.importorskip("tokenizers")
SMALL = ["--network.name", "mlp", "--network.width", "16", "--network.depth", "1", "--batch-size", "16", "--steps", "8"]
SMALL += ["--sampler.steps", "3", "--samples", "16", "--optimiser.learning-rate", "0.02"]
SCENES = ["train", "shapes", *SMALL, "--data.size", "6", "--data.objects", "1"]
RNG = np.random.default_rng(0)


@pytest.fixture(name="texts", scope="module")
def _texts(tmp_path_factory):
    """The folder of an encoder, with all captions of scenes of one object and a few more."""
    folder = tmp_path_factory.mktemp("text") / "texts"
    prompts = [*shapes("all", objects=1).texts, *digit_scenes("all", objects=1).texts, "a cat", "a dog"]
    encoder = c.make_text_encoder(folder, prompts, size="tiny", dtype="float32")
    encoder.encode(prompts).save(folder / TEXTS)
    return folder


@pytest.fixture(name="scenes", scope="module")
def _scenes(texts, tmp_path_factory):
    """A run of scenes, conditioned on their captions."""
    from diffjax.cli import main

    run = tmp_path_factory.mktemp("scenes") / "run"
    assert main([*SCENES, "--data.text", str(texts), "--out", str(run)]) == 0
    return run


@pytest.fixture(name="numbers", scope="module")
def _numbers(tmp_path_factory):
    """A folder of data with two numbers each."""
    folder = tmp_path_factory.mktemp("numbers")
    y = RNG.normal(size=(60, 2))
    np.savez(folder / "a.npz", x=np.tanh(y @ RNG.normal(size=(2, 3))).astype(np.float32), y=y)
    return folder


@pytest.fixture(name="numbers_run", scope="module")
def _numbers_run(numbers):
    """A run conditioned on them."""
    from diffjax.cli import main

    folder = numbers
    line = ["train", "toy2d", "--data.name", "file", "--data.path", str(folder / "a.npz"), "--data.conditional", *SMALL]
    assert main([*line, "--out", str(folder / "run"), "--guidance.scale", "2", "--guidance.dropout", "0.1"]) == 0
    return folder / "run"


def drawn(run, cond, n, **options):
    """Samples of a run for a condition, by the library."""
    found, params = c.load_run(run)
    return np.asarray(found.family.sample(params, jax.random.key(0), jnp.arange(n), cond, **options))


# --- conditions ---


KINDS = {
    "labels": (c.Samples((2,), 3), np.arange(4) % 3, 3),
    "numbers": (c.Samples((2,), None, numbers=2), RNG.normal(size=(4, 2)).astype(np.float32), 0.0),
    "text": (
        c.Samples((2,), None, text=(3, 5), encoder="a"),
        Text(RNG.normal(size=(4, 3, 5)).astype(np.float32), np.ones((4, 3), bool)),
        Text(0.0, False),
    ),
}
KINDS["both"] = (
    c.Samples((2,), 3, text=(3, 5), encoder="a"),
    Cascade(text=KINDS["text"][1], label=np.arange(4) % 3),
    Cascade(text=Text(0.0, False), label=3),
)


@pytest.mark.parametrize("name", KINDS)
def test_a_condition_its_example_and_its_null_are_one_tree(name):
    samples, given, null = KINDS[name]
    cond = samples.condition(given)
    assert samples.conditional
    assert samples.null == null == null_condition(samples.classes, samples.numbers, samples.text is not None)
    x0, example = samples.example()
    assert x0.shape == (1, 2)
    alone = samples.unconditional()
    for each, mine, other in zip(*map(jax.tree.leaves, (cond, example, alone)), strict=True):
        assert each.shape[1:] == mine.shape[1:] == other.shape
    assert jax.tree.structure(cond) == jax.tree.structure(example) == jax.tree.structure(null)
    dropped = drop_condition(jax.random.key(0), cond, null, 1.0)
    for mine, other in zip(jax.tree.leaves(dropped), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(mine, np.broadcast_to(other, mine.shape))
    rows = take(given, np.array([2, 0]))
    for mine, other in zip(jax.tree.leaves(rows), jax.tree.leaves(given), strict=True):
        np.testing.assert_array_equal(mine, np.asarray(other)[[2, 0]])
    for other, (_, wrong, _) in KINDS.items():
        if other != name:
            with pytest.raises(ValueError, match=r"^(cond|labels): "):
                samples.condition(wrong)


def test_numbers_have_a_one_that_says_that_they_are_there():
    np.testing.assert_array_equal(with_presence(np.zeros((2, 2))), [[0, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(with_presence(jnp.array([[3.0, 4.0]])), [[3, 4, 1]])
    samples = KINDS["numbers"][0]
    for wrong in (np.ones((4, 3)), np.ones(2), np.full((1, 2), np.nan)):
        with pytest.raises(ValueError, match="cond: "):
            samples.condition(wrong)


@pytest.mark.parametrize("name", KINDS)
def test_what_a_run_is_conditioned_on_is_stored_with_it(tmp_path, name):
    samples = KINDS[name][0]
    (tmp_path / "data.json").write_text(json.dumps(samples.record()))
    assert c.read_samples(tmp_path) == samples
    bad = [{"numbers": 0}, {"numbers": True}, {"text": [1]}, {"text": [1, 0]}, {"encoder": 5}]
    bad += [{"text": [3, 5], "encoder": None}] if samples.text is None else [{"encoder": None}]
    for change in bad:
        (tmp_path / "data.json").write_text(json.dumps(samples.record() | change))
        with pytest.raises(ValueError, match=r"data\.json does not describe the samples"):
            c.read_samples(tmp_path)


# --- data ---


def test_an_npz_with_numbers_conditions_on_them(numbers):
    arrays = np.load(numbers / "a.npz")
    data = c.build_data(c.DataConfig("file", str(numbers / "a.npz")))
    assert (data.classes, data.numbers, data.shape, data.names) == (None, 2, (3,), None)
    assert data.samples.null == 0.0
    assert "condition: 2 numbers, y of the file" in data.about
    for x, cond in (data.source(0, 0, 7), data.train, data.held_out):
        assert cond.dtype == np.float32
        np.testing.assert_array_equal(cond[:, 2], 1)
        at = [int(np.flatnonzero((arrays["x"] == row).all(1))[0]) for row in x]
        np.testing.assert_array_equal(cond[:, :2], arrays["y"][at].astype(np.float32))
    assert (len(data.train[0]), len(data.held_out[0])) == (48, 12)
    plain = c.build_data(c.DataConfig("file", str(numbers / "a.npz"), conditional=False))
    assert (plain.numbers, plain.source(0, 0, 4)[1], plain.train[1]) == (None, None, None)
    compressed = numbers / "b.npz"
    np.savez_compressed(compressed, **arrays)
    np.testing.assert_array_equal(c.build_data(c.DataConfig("file", str(compressed))).train[1], data.train[1])


@pytest.mark.parametrize(
    ("name", "make", "odd"),
    [
        ("shapes", shapes, {"size": 8, "objects": 1, "colours": 3, "sizes": 3, "jitter": 0.25}),
        ("digit_scenes", digit_scenes, {"size": 32, "objects": 1, "jitter": 0.25}),
    ],
)
def test_scenes_are_those_of_their_numbers(texts, name, make, odd):
    assert c.numbers_of(c.DATA[name]).keys() == odd.keys() | {"holdout", "holdout_seed"}
    data = c.build_data(c.DataConfig(name, conditional=False, holdout=0.3, holdout_seed=2, **odd))
    scenes = make(holdout=0.3, holdout_seed=2, **odd)
    np.testing.assert_array_equal(data.source(3, 5, 8)[0], scenes(3, 5, 8)[0])
    assert data.source(3, 5, 8)[1] is None
    assert (data.shape, data.pictures, data.samples.largest) == (scenes.shape, True, 1.0)
    captioned = c.build_data(c.DataConfig(name, holdout=0.3, objects=1, text=str(texts)))
    want = make(holdout=0.3, objects=1).captioned(load_texts(texts / TEXTS))(0, 0, 8)
    for mine, other in zip(jax.tree.leaves(captioned.source(0, 0, 8)), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert captioned.text == load_texts(texts / TEXTS).shape
    assert captioned.encoder == c.load_text_encoder(texts).fingerprint
    for given, message in (
        ({}, rf"data\.text: {name} is conditioned on captions, .* diffjax encode-text {name} --out texts"),
        ({"text": str(texts), "conditional": False}, r"data\.text: without --data\.conditional no captions"),
        ({"text": str(texts), "objects": 2}, r"data\.text: \d+ of \d+ are not encoded, the first 'an? "),
        ({"text": "nowhere"}, r"data\.text: nowhere/texts\.npz holds no encoded texts"),
        ({"text": str(texts), "objects": 1, "flip": True}, r"data\.flip: .* captions that say left and right"),
        ({"text": str(texts), "objects": 5}, r"data\.objects: 1 or 2"),
    ):
        with pytest.raises(ValueError, match=message):
            c.build_data(c.DataConfig(name, **given))
    for other in ("digits", "mixture"):
        with pytest.raises(ValueError, match=rf"data\.text: {other} has no captions"):
            c.build_data(c.DataConfig(other, text=str(texts)))


def test_images_with_captions_and_classes_have_both(texts, tmp_path):
    for name in ("cat", "dog"):
        lines = [{"file_name": f"{i}.png", "caption": "" if i == 3 else f"a {name}"} for i in range(6)]
        folder_of(tmp_path, lines, under=name)
    given = {"text": str(texts), "text_field": "caption", "holdout": 0.25}
    data = c.build_data(c.DataConfig("image_folder", str(tmp_path), **given))
    table = load_texts(texts / TEXTS)
    assert (data.classes, data.names, data.text) == (2, ("cat", "dog"), table.shape)
    assert f"captions: 2 different, of {table.shape[0]} tokens" in "; ".join(data.about)
    without = 0
    for x, cond in (data.train, data.held_out):
        assert isinstance(cond, Cascade)
        want = table([f"a {data.names[label]}" for label in cond.label])
        there = cond.text.mask.any(axis=1)
        without += len(x) - there.sum()
        np.testing.assert_array_equal(cond.text.embedding[there], want.embedding[there])
        np.testing.assert_array_equal(cond.text.mask[there], want.mask[there])
    assert without == 2
    assert isinstance(data.source(0, 0, 8)[1], Cascade)
    alone = c.build_data(c.DataConfig("image_folder", str(tmp_path), conditional=False, **given))
    assert alone.classes is None
    assert isinstance(alone.source(0, 0, 4)[1], Text)
    assert data.digest != c.build_data(c.DataConfig("image_folder", str(tmp_path))).digest
    (tmp_path / "dog" / "2.png").write_bytes(b"none")
    skipping = c.build_data(c.DataConfig("image_folder", str(tmp_path), skip_bad=True, **given))
    with pytest.warns(UserWarning, match="skipped"):
        labels = [part[1].label for part in (skipping.train, skipping.held_out)]
    assert sum(map(len, labels)) == 11
    with pytest.raises(ValueError, match=r"data\.text: .* there is no 'text', but 'caption'"):
        c.build_data(c.DataConfig("image_folder", str(tmp_path), text=str(texts)))


# --- what the command line is asked for ---


def asked(samples, text_folder=None, **options):
    """What options of `diffjax sample` ask for, of a run that is conditioned so."""
    run = SimpleNamespace(samples=samples, config=SimpleNamespace(data=SimpleNamespace(text=text_folder)))
    return asked_for(Sample(run="", **options), run)


@pytest.mark.parametrize("given", [(np.nan, 0.0), (0.0, -np.inf), (1e39, 0.0)])
def test_numbers_that_are_not_finite_are_named(given):
    with pytest.raises(
        ValueError, match=re.escape(f"numbers: finite numbers of float32 are needed, got {given[0]} {given[1]}")
    ):
        asked(KINDS["numbers"][0], numbers=given)
    np.testing.assert_array_equal(
        asked(KINDS["numbers"][0], numbers=(1e38, -1.0), n=1).cond, np.float32([[1e38, -1, 1]])
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "prompts: a prompt on each line is needed, {} holds none"),
        (b" \r\n\n\t\n", "prompts: a prompt on each line is needed, {} holds none"),
        ("a dog\n".encode("utf-16-le"), "prompts: prompt 1 of {}: character 1 is NUL; if the file is UTF-16"),
        ("a dog\n".encode("utf-16"), "prompts: {} cannot be read: .* it is UTF-16; save it as UTF-8"),
        ("gr\u00fcn\n".encode("latin-1"), "prompts: {} cannot be read: .* line 1: byte 0xfc is no UTF-8"),
        (None, "prompts: {} cannot be read: .*No such file"),
        (b"a cat\n" * 101, "n: at least one sample for each of 101 prompts is needed, got 100"),
    ],
)
def test_files_that_hold_no_prompts_are_named(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message.format(re.escape(str(path)))):
        asked(KINDS["text"][0], prompts=str(path))


def test_a_file_without_end_is_not_read(tmp_path):
    with pytest.raises(ValueError, match="prompts: /dev/zero cannot be read: it has more than 67,108,864 bytes"):
        asked(KINDS["text"][0], prompts="/dev/zero")
    with pytest.raises(ValueError, match=r"text: at least one prompt is needed, got none; leave it out"):
        asked(KINDS["text"][0], text=())
    with pytest.raises(ValueError, match=r"text: this run is not conditioned on a text, got a cat \| a dog$"):
        asked(KINDS["labels"][0], text=("a cat", "a dog"))


def test_prompts_that_lose_something_are_reported(texts, tmp_path, capfd):
    encoder = c.load_text_encoder(texts)
    samples = c.Samples((2,), 3, text=encoder.shape, encoder=encoder.fingerprint)
    given = ("a red circle in the middle", "a \u5706", " ".join(["a dog"] * 30))
    asked(samples, str(texts), text=given[:1])
    assert capfd.readouterr() == ("", "")
    found = asked(samples, str(texts), text=given, n=7)
    said = capfd.readouterr().out
    longest = count_tokens(encoder.tokenizer, given).max()
    assert f"cut: 1 prompts have more than {encoder.length} tokens, the longest {longest}; they lose their end" in said
    assert "unknown: 1 prompts have characters without a token, the first 'a \u5706'" in said
    # Each prompt is drawn with all classes, in order, as far as its samples go.
    assert found.captions == (given[0],) * 3 + (given[1],) * 2 + (given[2],) * 2
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 0, 1, 0, 1])
    np.testing.assert_array_equal(found.cond.label, found.labels)
    np.testing.assert_array_equal(found.cond.text.embedding, encoder(found.captions).embedding)
    np.testing.assert_array_equal(asked(samples, n=7).labels, [0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(asked(samples, str(texts), text=given, n=4, label=2).labels, [2, 2, 2, 2])


# --- runs ---


@pytest.mark.slow
def test_a_run_of_scenes_is_trained_on_their_captions(scenes, texts):
    table = load_texts(texts / TEXTS)
    assert c.read_samples(scenes).text == table.shape
    assert c.read_samples(scenes).encoder == table.fingerprint
    trained = dj.load(scenes)
    assert trained.null == Text(0.0, False)
    encoder = c.load_text_encoder(texts)
    xt, prompts = jax.random.normal(jax.random.key(1), (2, 6, 6, 3)), ["a red circle in the middle", ""]
    cond = encoder(prompts)
    got = trained.denoiser(cond)(xt, 0.5)
    np.testing.assert_allclose(got, dj.make_denoiser(trained.diffusion, trained.params, cond)(xt, 0.5), atol=1e-6)
    null = trained.denoiser()(xt, 0.5)
    np.testing.assert_allclose(got[1], null[1], atol=1e-6)  # no token is no condition
    assert np.abs(got[0] - null[0]).max() > 1e-4
    with pytest.raises(ValueError, match=r"cond: a Text is needed, of load_text_encoder\(FOLDER\)\(texts\), got list"):
        trained.denoiser(prompts)
    with pytest.raises(ValueError, match="cond: embedding"):
        trained.denoiser(Text(cond.embedding[..., :3], cond.mask))


@pytest.mark.slow
@covers("sample", "text", "prompts", "encoder")
def test_prompts_are_encoded_and_drawn(scenes, texts, tmp_path, capfd):
    prompts = ["a red circle in the middle", "a small blue square at the top left"]
    out = tmp_path / "x.npz"
    done(capfd, "sample", scenes, "--text", *prompts, "--n", 5, "--guidance", "2", "--out", out)
    arrays = np.load(out)
    named = [prompts[0]] * 3 + [prompts[1]] * 2
    assert arrays["texts"].tolist() == named
    want = drawn(scenes, c.load_text_encoder(texts)(named), 5, guidance=c.OtherGuidance(scale=2.0))
    np.testing.assert_allclose(arrays["x"], want, atol=2e-5)
    (tmp_path / "prompts.txt").write_text(f"{prompts[0]}\n\n {prompts[1]}  \n")
    done(capfd, "sample", scenes, "--prompts", tmp_path / "prompts.txt", "--n", 5, "--guidance", "2", "--out", out)
    np.testing.assert_allclose(np.load(out)["x"], want, atol=2e-5)
    done(capfd, "sample", scenes, "--n", 5, "--guidance", "1", "--out", out)
    none = np.load(out)
    assert "texts" not in none
    want = drawn(scenes, c.load_text_encoder(texts)([""] * 5), 5, guidance=c.OtherGuidance(scale=1.0))
    np.testing.assert_allclose(none["x"], want, atol=2e-5)
    done(capfd, "sample", scenes, "--text", *prompts, "--n", 4, "--encoder", texts, "--out", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    other = c.make_text_encoder(tmp_path / "other", prompts, size="tiny", seed=1)
    for options, message in (
        (["--text", *prompts, "--n", "1"], "n: at least one sample for each of 2 prompts is needed, got 1"),
        (["--text", "a", "--prompts", "b"], "prompts: --text or --prompts is needed, got both, b"),
        (["--prompts", tmp_path / "absent"], "prompts: "),
        (["--text", "a", "--encoder", tmp_path], "encoder: prompts are encoded as the captions of the run were, but"),
        (["--text", "a", "--encoder", tmp_path / "other"], f"{tmp_path / 'other'} holds {other.fingerprint[:12]}"),
        (["--numbers", "1"], "numbers: this run is conditioned on none, got 1"),
        (["--label", "1"], "label: this run knows no classes"),
    ):
        assert message in refused(capfd, "sample", scenes, *options)


@pytest.mark.slow
@covers("sample", "numbers")
def test_samples_are_drawn_for_numbers(numbers_run, tmp_path, capfd):
    run, out = numbers_run, tmp_path / "x.npz"
    trained = dj.load(run)
    xt, y = jax.random.normal(jax.random.key(1), (2, 3)), np.array([[0.5, -1.0], [0.0, 0.0]])
    cond = np.concatenate([y, np.ones((2, 1))], axis=1).astype(np.float32)
    want = dj.make_denoiser(trained.diffusion, trained.params, jnp.asarray(cond))(xt, 0.5)
    np.testing.assert_allclose(trained.denoiser(y)(xt, 0.5), want, atol=1e-6)
    assert np.abs(trained.denoiser()(xt, 0.5) - want).max(axis=1).min() > 1e-4  # 0, 0 are there, the null is not
    done(capfd, "sample", run, "--numbers", "0.5", "-1", "--n", 4, "--out", out)
    given = np.tile(np.float32([[0.5, -1.0, 1.0]]), (4, 1))
    np.testing.assert_allclose(np.load(out)["x"], drawn(run, given, 4), atol=2e-5)
    done(capfd, "sample", run, "--n", 4, "--out", out)
    np.testing.assert_allclose(np.load(out)["x"], drawn(run, np.zeros((4, 3), np.float32), 4), atol=2e-5)
    assert "numbers: 2 are needed, got 1" in refused(capfd, "sample", run, "--numbers", "1", "--out", out)
    assert "text: this run is not conditioned on a text" in refused(capfd, "sample", run, "--text", "a", "--out", out)


def test_what_a_run_cannot_be_conditioned_on_is_named(texts, tmp_path, capfd):
    assert "data.text: shapes is conditioned on captions" in refused(capfd, *SCENES, "--out", tmp_path / "a")
    line = ["train", "digits_vae", "--data.name", "shapes", "--data.objects", "1", "--data.text", texts]
    message = "data.conditional: family vae is conditioned on labels alone, got a text"
    assert message in refused(capfd, *line, "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_captions_of_another_encoder_are_other_data(scenes, tmp_path, capfd):
    more = shapes("all", objects=1).texts
    other = c.make_text_encoder(tmp_path / "other", more, size="tiny", dtype="float32", seed=1)
    other.encode(more).save(tmp_path / "other" / TEXTS)
    said = refused(capfd, *SCENES, "--data.text", tmp_path / "other", "--out", scenes)
    assert re.search(r"out: .* was trained on other data, .* by the encoder \w{12}", said)


@pytest.mark.slow
def test_a_text_of_another_place_is_the_same_run(scenes, texts, tmp_path, capfd):
    """Where the encoded captions lie does not matter, and a finished run has nothing to do."""
    (tmp_path / "moved").symlink_to(texts)
    code, out, _ = call(capfd, *SCENES, "--data.text", tmp_path / "moved", "--out", scenes)
    assert code == 0
    assert "from step 8, saved before" in out
