"""Files of others: what is read, what is refused and by which name, latent spaces (float32, no torch)."""

import json
import pickle

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy
from nets import dropouts

from diffjax import Network, from_linen, interop
from diffjax.data import encoded, from_arrays
from diffjax.interop import load_module, read_tensors, save_pretrained, to_tensors, write_tensors
from diffjax.networks import AutoencoderKL, LatentSpace, draw_parameters
from diffjax.training import init_state

CONFIG = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.30.0",
    "block_out_channels": [4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2,
    "latent_channels": 2,
    "scaling_factor": 0.4,
    "shift_factor": 0.3,
}
NAME = "diffusion_pytorch_model.safetensors"
quick_jit = lambda f: jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(name="autoencoder", scope="module")
def _autoencoder():
    return interop.module_from_config(CONFIG)


@pytest.fixture(name="params", scope="module")
def _params(autoencoder):
    """Drawn in one, moved off zero."""
    params = draw_parameters(jax.random.key(0), autoencoder.init, jnp.zeros((1, 4, 4, 3)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), np.float32), params)


@pytest.fixture(name="folder")
def _folder(tmp_path, params):
    save_pretrained(tmp_path, params, CONFIG)
    return tmp_path


# --- files ------------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(folder, params):
    loaded = load_module(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert loaded.config == CONFIG
    assert loaded.module == interop.module_from_config(CONFIG)
    half = load_module(folder, dtype=jnp.bfloat16)
    assert half.module.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_every_dtype_becomes_float32(dtype, folder, params):
    tensors = {key: value.astype(dtype) for key, value in to_tensors(params).items()}
    write_tensors(folder / NAME, tensors)
    loaded = load_module(folder).params
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype).astype(np.float32)), loaded, params)


def shard(folder, params, **changes):
    """The weights in two files; `changes` to the index."""
    tensors = to_tensors(params)
    (folder / NAME).unlink()
    names = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(sorted(tensors))}
    for name in set(names.values()):
        safetensors.numpy.save_file({key: tensors[key] for key in names if names[key] == name}, folder / name)
    index = {"metadata": {"total_size": sum(value.nbytes for value in tensors.values())}, "weight_map": names}
    index = {**index, **{key: change(index[key]) for key, change in changes.items()}}
    (folder / f"{NAME}.index.json").write_text(json.dumps(index))


def test_shards(folder, params):
    shard(folder, params)
    jax.tree.map(np.testing.assert_array_equal, load_module(folder).params, params)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"index\.json: the shard part-1\.safetensors is missing"):
        read_tensors(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": lambda _: [1]}, r"metadata is \[1\]; an object"),
        ({"metadata": lambda _: {"total_size": "many"}}, "total_size is 'many', but the shards hold"),
        ({"metadata": lambda _: {"total_size": 12}}, "total_size is 12, but the shards hold"),
        ({"weight_map": lambda names: {**names, "more": "part-0.safetensors"}}, "more is not in part-0.safetensors"),
        ({"weight_map": lambda names: dict(list(names.items())[2:])}, "decoder.conv_in.bias is also in part-0"),
        ({"weight_map": lambda names: {**names, "x": "../part-0.safetensors"}}, "weight_map names '../part-0.safeten"),
        ({"weight_map": lambda names: {**names, "x": "/etc/part.safetensors"}}, "weight_map names '/etc/part.safeten"),
        ({"weight_map": lambda names: {**names, "x": "part-0.bin"}}, "weight_map names 'part-0.bin'"),
        ({"weight_map": lambda names: []}, "weight_map is missing"),
    ],
)
def test_shards_that_are_not_as_their_index_says(changes, message, folder, params):
    shard(folder, params, **changes)
    with pytest.raises(ValueError, match=f"index.json: {message}"):
        read_tensors(folder)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_pickles_are_refused(suffix, folder, params):
    (folder / NAME).unlink()
    file = folder / f"diffusion_pytorch_model{suffix}"
    file.write_bytes(pickle.dumps(to_tensors(params)))
    with pytest.raises(ValueError, match=rf"model\{suffix}: there are pickled weights only") as error:
        load_module(folder)
    assert "\n" not in str(error.value)
    with pytest.raises(
        ValueError, match=rf"model\{suffix}: weights are read from .safetensors and .npz alone; a pickle"
    ):
        read_tensors(file)


def test_npz_without_pickles(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3.0))
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.npz")["x"], np.arange(3.0))
    np.savez(tmp_path / "b.npz", x=np.array([{}], object))
    with pytest.raises(ValueError, match=r"b\.npz: no \.npz can be read"):
        read_tensors(tmp_path / "b.npz")


def test_damaged_npz_in_one_line(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1000))
    whole = (tmp_path / "a.npz").read_bytes()
    stored = tmp_path / "stored.npz"
    np.savez(stored, x=np.zeros(3))
    np.save(tmp_path / "one.npy", np.zeros(3))
    plain = (tmp_path / "one.npy").read_bytes()
    contents = [plain, stored.read_bytes().replace(b"'descr'", b"'des\n(r"), b"", whole[:50]]
    contents += [whole[:i] + b"\xff" * 4 + whole[i + 4 :] for i in range(0, len(whole), 9)]
    messages = []
    for content in contents:
        (tmp_path / "b.npz").write_bytes(content)
        try:
            read_tensors(tmp_path / "b.npz")
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > len(contents) / 2
    assert all("b.npz: no .npz can be read" in message and "\n" not in message for message in messages)


def test_files_that_cannot_be_read(folder):
    content = (folder / NAME).read_bytes()
    for damaged in (content[:-1], content[:20], b"", b"\xff" * 100):
        (folder / NAME).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{NAME}: no safetensors can be read"):
            load_module(folder)
    (folder / NAME).rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"which of a\.safetensors, b\.safetensors\?"):
        load_module(folder)
    (folder / "a.safetensors").unlink()
    load_module(folder)
    (folder / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"there is no \.safetensors here"):
        load_module(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.conv_in.bias"), "no tensor decoder.conv_in.bias"),
        (lambda t: t.update(more=np.ones(2, np.float32)), "nothing here takes the tensor more"),
        (lambda t: t.update({"decoder.conv_in.bias": np.ones(3, np.float32)}), "decoder.conv_in.bias has shape"),
        (lambda t: t.update({"decoder.conv_in.bias": np.full(4, np.nan, np.float32)}), "decoder.conv_in.bias has va"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, folder, params):
    tensors = to_tensors(params)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / NAME)
    with pytest.raises(ValueError, match=f"{NAME}: {message}"):
        load_module(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet3DConditionModel"}, "_class_name is 'UNet3DConditionModel'; diffjax has UNet2DModel"),
        ({"down_block_types": ["DownEncoderBlock2D", "Other"]}, r"down_block_types is \['DownEncoderBlock2D', 'Other'"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu'; diffjax has 'silu'"),
        ({"latents_mean": [0.0]}, r"latents_mean is \[0.0\]"),
        ({"unheard_of": 3}, "unknown key unheard_of, with value 3"),
    ],
)
def test_configurations_that_ask_for_more_are_named(change, message, folder):
    (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(ValueError, match=rf"config\.json: {message}") as error:
        load_module(folder)
    assert "\n" not in str(error.value)


def test_a_configuration_must_be_json(folder):
    for content in ("{", "[1]", "[" * 100_000):
        (folder / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json: "):
            load_module(folder)


def test_saving_checks_what_it_writes(tmp_path, params):
    with pytest.raises(ValueError, match=r"config\.json: .* has shape"):
        save_pretrained(tmp_path, params, {**CONFIG, "latent_channels": 3})
    worse = jax.tree.map(lambda leaf: np.where(leaf == leaf.max(), np.inf, leaf), params)
    with pytest.raises(ValueError, match="not finite"):
        save_pretrained(tmp_path, worse, CONFIG)
    with pytest.raises(ValueError, match=r"scheduler_config\.json: _class_name is None"):
        save_pretrained(tmp_path, params, CONFIG, scheduler={})
    assert not list(tmp_path.iterdir())


# --- pipelines --------------------------------------------------------------------------------------------------------


def test_from_pretrained_names_what_it_lacks(folder, tmp_path):
    with pytest.raises(ValueError, match=r"scheduler_config\.json: there is none; `load_module` reads"):
        interop.from_pretrained(folder)
    (folder / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    with pytest.raises(ValueError, match="AutoencoderKL is no diffusion's network"):
        interop.from_pretrained(folder)
    index = {"_class_name": "Pipe", "unet": ["diffusers", "UNet2DModel"], "text_encoder": ["transformers", "CLIP"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model_index\.json: text_encoder is 'CLIP'; diffjax has unet"):
        interop.from_pretrained(folder)
    (folder / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"]}))
    with pytest.raises(ValueError, match=r"model_index\.json: there is no scheduler"):
        interop.from_pretrained(folder)
    for source in (tmp_path / "nowhere", "no where", "a/b/c"):
        with pytest.raises(ValueError, match=r"source: .* is neither a folder nor owner/name"):
            interop.from_pretrained(source)


def test_the_hub_is_asked_for_json_and_safetensors_alone(folder, monkeypatch):
    """Of a repository, with a stand-in for the hub: what is fetched, what is not, and its errors in one line."""
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot_download(repo, *, revision, allow_patterns, ignore_patterns):
        asked.append((repo, revision, allow_patterns, ignore_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    load_module("owner/name", part=".", revision="v1")
    assert [(repo, revision) for repo, revision, *_ in asked] == [("owner/name", "v1")] * 2
    assert [patterns for *_, patterns, _ in asked] == [["*.json"], ["*.safetensors"]]
    assert {"*.fp16*", "*/*"} <= set(asked[1][-1])
    load_module("owner/name")
    (folder / NAME).rename(folder / "model.bin")
    monkeypatch.setattr(
        hub, "list_repo_files", lambda repo, *, revision: ["unet/other.bin", "model.bin"], raising=False
    )
    with pytest.raises(
        ValueError, match=r"source: owner/name: model\.bin: there are pickled weights only; a pickle can"
    ):
        load_module("owner/name")

    def fails(*args, **options):
        raise hub.errors.LocalEntryNotFoundError("no\n network")

    monkeypatch.setattr(hub, "snapshot_download", fails)
    with pytest.raises(ValueError, match="source: owner/name is no folder, and cannot be fetched: no network"):
        load_module("owner/name")


DIT = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 2,
    "out_channels": 4,
    "num_layers": 1,
    "sample_size": 4,
    "num_embeds_ada_norm": 3,
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
}
T5 = {"model_type": "t5", "d_model": 4, "d_kv": 2, "d_ff": 8, "num_heads": 2, "num_layers": 2, "vocab_size": 7}
UNET = {
    "_class_name": "UNet2DModel",
    "sample_size": 4,
    "block_out_channels": [4, 4],
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "num_class_embeds": 3,
    "attention_head_dim": 2,
}


def drawn(config):
    """Parameters of a configuration's module."""
    shapes = interop.parameter_shapes(interop.module_from_config(config), config)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (UNET, {"block_out_channels": None, "layers_per_block": [1, 1], "attention_head_dim": "4", "dropout": "0"}),
        (UNET, {"num_class_embeds": 0, "norm_eps": None, "freq_shift": "a", "center_input_sample": "false"}),
        (UNET, {"mid_block_scale_factor": 0, "time_embedding_dim": [3], "down_block_types": [1, 2], "_class_name": []}),
        (DIT, {"num_layers": None, "patch_size": 0, "num_attention_heads": 0, "sample_size": [4, 4]}),
        (DIT, {"dropout": float("nan"), "in_channels": 2.0, "out_channels": "4", "attention_bias": 1}),
        (T5, {"d_model": "4", "num_layers": 0, "d_ff": True}),
        (CONFIG, {"scaling_factor": None, "layers_per_block": 0, "shift_factor": [1.0], "force_upcast": "no"}),
        (CONFIG, {"scaling_factor": "0.1", "block_out_channels": []}),
    ],
)
def test_values_of_another_kind_are_named(config, changes):
    for key, value in changes.items():
        with pytest.raises(ValueError, match=f"^where: {key} is ") as error:
            interop.module_from_config({**config, key: value}, where="where")
        assert "\n" not in str(error.value)


def test_null_is_a_value_where_the_class_has_it():
    """As files of NCSN++ say."""
    config = {**UNET, "norm_num_groups": None, "attention_head_dim": None, "mid_block_scale_factor": 2**0.5}
    assert interop.module_from_config(config).head_channels is None


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (UNET, {"norm_num_groups": 5}, "groups: a divisor of 4"),
        (CONFIG, {"norm_num_groups": 3}, "channels: a multiple of groups = 3"),
        (DIT, {"attention_head_dim": 1}, "width: a multiple of 4"),
        (T5, {"relative_attention_num_buckets": 3}, "buckets: an even number"),
    ],
)
def test_values_that_do_not_fit_together_name_the_file(config, change, message):
    config = {**config, **change}
    with pytest.raises(ValueError, match=f"^where: {message}"):
        interop.parameter_shapes(interop.module_from_config(config, where="where"), config, where="where")


def test_images_are_as_the_class_has_them_where_the_file_is_silent(tmp_path):
    config = {
        **{key: value for key, value in DIT.items() if key not in ("in_channels", "sample_size")},
        "num_layers": 1,
    }
    config["out_channels"] = 8
    save_pretrained(tmp_path, drawn(config), config, scheduler={"_class_name": "DDIMScheduler"})
    p = interop.from_pretrained(tmp_path, steps=2)
    assert p.shape == (32, 32, 4)
    y = jax.eval_shape(p.diffusion.network.apply, p.params, jnp.zeros((1, 4, 4, 4)), jnp.zeros(1), jnp.zeros(1, int))
    assert y.shape == (1, 4, 4, 4)


def test_channels_and_sizes_that_no_image_has_are_refused(tmp_path):
    for out in (1, 5):
        config, folder = {**UNET, "out_channels": out}, tmp_path / str(out)
        save_pretrained(folder, drawn(config), config, scheduler={"_class_name": "DDIMScheduler"})
        with pytest.raises(ValueError, match=f"config.json: out_channels is {out}; in_channels 3 is needed, or twice"):
            interop.from_pretrained(folder, steps=2)
    config = {**UNET, "out_channels": 6}
    save_pretrained(tmp_path / "6", drawn(config), config, scheduler={"_class_name": "DDIMScheduler"})
    (file,) = (tmp_path / "6").rglob("config.json")
    assert interop.from_pretrained(tmp_path / "6", steps=2).shape == (4, 4, 3)
    for size in ("a", [4], [4, 0], 2.5, True):
        file.write_text(json.dumps({**config, "sample_size": size}))
        with pytest.raises(ValueError, match=r"config\.json: sample_size is "):
            interop.from_pretrained(tmp_path / "6", steps=2)


@pytest.mark.parametrize("config", [T5, DIT, UNET], ids=["T5", "DiT", "UNet2D"])
def test_every_kind_is_saved_and_loaded(config, tmp_path):
    params = drawn(config)
    save_pretrained(tmp_path, params, config)
    jax.tree.map(np.testing.assert_array_equal, load_module(tmp_path).params, params)


@pytest.mark.slow
def test_a_pipeline_in_latents(tmp_path, params):
    """A DiT that predicts its variance too, with an autoencoder: the mean's half of its answer, labels, images."""
    dit = drawn(DIT)
    for part, network, weights in (("transformer", DIT, dit), ("vae", CONFIG, params)):
        save_pretrained(tmp_path / part, weights, network)
    (tmp_path / "scheduler").mkdir()
    scheduler = {"_class_name": "DDIMScheduler", "clip_sample": False}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"transformer": DIT["_class_name"], "vae": "AutoencoderKL", "scheduler": "DDIMScheduler"}
    index = {part: ["diffusers", name] for part, name in index.items()}
    (tmp_path / "model_index.json").write_text(
        json.dumps({**index, "_class_name": "DiTPipeline", "id2label": {"0": "a"}})
    )
    p = interop.from_pretrained(tmp_path, steps=3)
    assert p.shape == (4, 4, 2)
    jax.tree.map(np.testing.assert_array_equal, p.latents.params, params)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 4, 2)), jnp.float32)
    t = p.ts[0]
    np.testing.assert_allclose(p.diffusion.parameterisation.noise_level(p.process, jnp.asarray(t)), 666.0)
    module = interop.module_from_config(DIT)

    @quick_jit
    def both(params, x, cond):
        whole = module.apply({"params": params}, x, jnp.full(2, 666.0), cond)
        return whole, interop.denoiser_of(p._replace(params=params), cond)(x, t)

    whole, x0 = both(dit, x, jnp.array([1, 3]))
    assert whole.shape == (2, 4, 4, 4)
    expected = (x - p.process.sigma(t) * whole[..., :2]) / p.process.alpha(t)
    np.testing.assert_allclose(x0, expected, rtol=1e-4, atol=1e-4)


# --- latents ----------------------------------------------------------------------------------------------------------


def test_latents_are_the_autoencoders_scaled(autoencoder, params):
    latents = LatentSpace(params, autoencoder)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6, 4, 3)), jnp.float32)

    @quick_jit
    def everything(latents, x):
        raw, logvar = autoencoder.apply({"params": latents.params}, x, method="encode")
        mean, std = latents.moments(x)
        keys = jax.random.split(jax.random.key(7), 400)
        draws = jax.vmap(lambda key: latents.encode(key, x))(keys)
        part = latents.encode(keys[0], x[1:], index=jnp.arange(1, 3))
        plain = autoencoder.apply({"params": latents.params}, raw, method="decode")
        return raw, logvar, mean, std, draws, part, plain, latents.decode(mean)

    raw, logvar, mean, std, draws, part, plain, decoded = everything(latents, x)
    assert mean.shape == (3, 3, 2, 2)
    np.testing.assert_allclose(mean, 0.4 * (np.asarray(raw) - 0.3), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, 0.4 * np.exp(0.5 * np.asarray(logvar)), rtol=1e-5)
    scaled = (np.asarray(draws) - np.asarray(mean)) / np.asarray(std)
    assert abs(scaled.mean()) < 5 / np.sqrt(scaled.size)
    assert abs(scaled.var() - 1) < 5 * np.sqrt(2 / scaled.size)
    np.testing.assert_allclose(part, draws[0, 1:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(decoded, plain, rtol=1e-4, atol=1e-5)


def test_a_source_in_latents():
    """Conditions stay; a part of a batch is a part of the same latents; each step draws anew."""
    images = np.arange(24, dtype=np.float32).reshape(6, 4)
    source = from_arrays(images, np.arange(6))

    def encode(key, x0, *, index):
        return 10 * x0[:, :2] + jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (2,)))(index)

    latents = encoded(source, encode)
    z, cond = latents(0, 3, 6)
    x0, plain_cond = source(0, 3, 6)
    np.testing.assert_array_equal(cond, plain_cond)
    assert z.dtype == np.float32
    noise = z - 10 * x0[:, :2]
    assert np.all((noise >= 0) & (noise <= 1))
    assert len(np.unique(noise)) == noise.size
    parts = [latents(0, 3, 6, part=(i, 2)) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), z)
    again = latents(0, 9, 6)[0] - 10 * source(0, 9, 6)[0][:, :2]
    assert np.intersect1d(np.round(again, 3), np.round(noise, 3)).size < noise.size / 2


def test_latents_and_training_draw_from_keys_of_their_own():
    """Of one seed, at the steps whose keys were once those of `init_state`: the network's and the steps'."""

    def encode(key, x0, *, index):
        return jnp.broadcast_to(jax.random.uniform(key, (4,)), (index.shape[0], 4))

    latents = encoded(from_arrays(np.zeros((3, 4), np.float32)), encode)
    drawn = [latents(5, step, 3)[0][0] for step in range(3)]
    keys = []
    network = Network(lambda key, *_: keys.append(key) or {"w": jnp.zeros(())}, lambda *_, **__: None)
    keys.append(init_state(jax.random.key(5), network, optax.sgd(0.1), jnp.zeros((1, 4))).key)
    training = [np.asarray(jax.random.uniform(key, (4,))) for key in keys]
    assert len(training) == 2
    assert not np.isin(np.round(drawn, 5), np.round(training, 5)).any()


# --- the autoencoder --------------------------------------------------------------------------------------------------


def test_autoencoder_is_drawn_in_one(autoencoder, monkeypatch):
    """No leaf needs the network to be run."""
    monkeypatch.setattr(jax, "jit", None)
    x = jnp.zeros((1, 4, 4, 3))
    params = from_linen(autoencoder_call(autoencoder)).init(jax.random.key(0), x, jnp.zeros(1))
    shapes = interop.parameter_shapes(autoencoder, CONFIG)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def autoencoder_call(module):
    """The autoencoder behind the arguments that `from_linen` gives."""

    class Call(type(module)):
        def __call__(self, x, c_noise, cond=None):
            return self.decode(self.encode(x)[0])

    fields = {name: getattr(module, name) for name in module.__dataclass_fields__ if name not in ("parent", "name")}
    return Call(**fields)


@pytest.mark.slow
def test_autoencoder_rematerialised_and_in_half_precision(autoencoder, params):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 4, 3)), jnp.float32)
    loss = lambda module: lambda params: jnp.sum(module.apply({"params": params}, x) ** 2)
    plain, again = (quick_jit(jax.grad(loss(autoencoder.clone(remat=remat))))(params) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), plain, again)
    exact = autoencoder.apply({"params": params}, x)
    upcast = autoencoder.clone(dtype=jnp.bfloat16).apply({"params": params}, x)
    half = autoencoder.clone(dtype=jnp.bfloat16, upcast=False).apply({"params": params}, x)
    assert upcast.dtype == half.dtype == jnp.float32
    np.testing.assert_array_equal(upcast, exact)
    assert 1e-4 < np.max(np.abs(half - exact)) / np.max(np.abs(exact)) < 0.1


@pytest.mark.slow
def test_autoencoder_drops_features_in_every_block(autoencoder, params):
    module = autoencoder.clone(dropout=0.3)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 4, 4, 3)), jnp.float32)
    variables, z = {"params": params}, jnp.ones((1, 2, 2, 2))

    def train(key):
        options = {"deterministic": False, "rngs": {"dropout": key}}
        mean, _ = module.apply(variables, x, method="encode", **options)
        return mean, module.apply(variables, z, method="decode", **options)

    with dropouts() as places:
        jax.eval_shape(train, jax.random.key(0))
    named = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    blocks = {jax.tree_util.keystr(p[:-2], simple=True, separator="/") for p in named if p[-2].key == "conv2"}
    assert len(blocks) == 2 * 1 + 2 + 2 * 2 + 2  # two levels of one block and of two, and two middles
    assert places == {(block, 0) for block in blocks}
    drawn = map(quick_jit(train), (jax.random.key(i) for i in (0, 0, 1)))
    for first, again, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(first, again)
        assert np.abs(np.asarray(first) - other).max() > 1e-2
    with dropouts() as places:
        jax.eval_shape(module.apply, variables, x)
    assert places == set()


def test_autoencoder_names_what_does_not_fit(autoencoder, params):
    for fields, message in (
        ({"channels": (6,), "groups": 4}, "channels: a multiple of groups = 4"),
        ({"channels": ()}, "channels: "),
        ({"blocks": 0}, "blocks: at least 1"),
        ({"scaling_factor": 0.0}, "scaling_factor: it must not be 0"),
        ({"dropout": 1.0}, r"dropout: a probability in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            AutoencoderKL(**fields)
    latents = LatentSpace(params, autoencoder)
    for call, shape in (
        (latents.moments, (1, 4, 4, 2)),
        (latents.moments, (1, 1, 4, 3)),
        (latents.decode, (1, 4, 4, 3)),
    ):
        with pytest.raises(ValueError, match=r"[xz]: \[b, height, width, [23]\] with sides of at least"):
            call(jnp.zeros(shape))
