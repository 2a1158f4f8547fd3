"""Files of others that are made to do harm: each is refused by name, before there is memory or time spent on it."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import struct
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from test_interop import CONFIG, DIT, NAME, T5, UNET, drawn

from diffjax import interop
from diffjax.interop import (
    SCHEDULERS,
    _config,
    _files,
    _known,
    load_module,
    read_scheduler,
    read_tensors,
    save_pretrained,
    to_tensors,
)
from diffjax.networks import InceptionV3

CONFIGS = {"UNet2DModel": UNET, "DiTTransformer2DModel": DIT, "Transformer2DModel": DIT, "AutoencoderKL": CONFIG}
CONFIGS = {**{name: {**config, "_class_name": name} for name, config in CONFIGS.items()}, "t5": T5}
SECONDS, BYTES = 60, 2**25


@contextlib.contextmanager
def cheap():
    """Fails where it takes more than `SECONDS` or `BYTES` of memory."""

    def stop(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    tracemalloc.start()
    signal.alarm(SECONDS)
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        signal.alarm(0)
        tracemalloc.stop()
        signal.signal(signal.SIGALRM, before)


def refused(call, message):
    """The one line that a call is refused by, at once."""
    with cheap(), pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2000
    return str(error.value)


@pytest.fixture(name="whole", scope="module")
def _whole(tmp_path_factory):
    """A pipeline: a U-Net, a scheduler, model_index.json."""
    folder = tmp_path_factory.mktemp("pipeline") / "whole"
    save_pretrained(folder, drawn(UNET), UNET, scheduler={"_class_name": "DDIMScheduler"})
    return folder


@pytest.fixture(name="folder")
def _folder(whole, tmp_path):
    """A copy of it to do harm to."""
    return shutil.copytree(whole, tmp_path / "whole")


# --- what is no regular file, and what is too large -------------------------------------------------------------------

FILES = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json", f"unet/{NAME}")
# Each file that interop reads, with what reads it.
READERS = {
    **dict.fromkeys(FILES, lambda path: interop.from_pretrained(next(p for p in path.parents if p.name == "whole"))),
    "unet/shards": lambda path: load_module(path.parent),
    "index": lambda path: read_tensors(path.parent),
    "tensors": read_tensors,
    "npz": read_tensors,
    "inception": interop.read_inception,
    "tokenizer": lambda path: interop.tokenize(path, ["a"], 5),
}


def place(reader, folder):
    """The path that a reader of `READERS` reads, free for something else to stand there."""
    names = {"unet/shards": "unet/part-0.safetensors", "index": f"unet/{NAME}.index.json", "tensors": f"unet/{NAME}"}
    names |= {"npz": "a.npz", "inception": "a.safetensors", "tokenizer": "tokenizer.json"}
    path = folder / names.get(reader, reader)
    if reader == "unet/shards":
        index = {"weight_map": {"x": path.name}}
        (folder / "unet" / f"{NAME}.index.json").write_text(json.dumps(index))
    if reader in ("unet/shards", "index"):
        (folder / "unet" / NAME).unlink()
    path.unlink(missing_ok=True)
    return path


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def link_to_a_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("between"))
    path.with_name("between").symlink_to(path.with_name("pipe"))


def folder_there(path):
    path.mkdir()


def dangling(path):
    path.symlink_to(path.with_name("nowhere"))


KINDS = {
    fifo: "a pipe",
    device: "a device",
    link_to_a_pipe: "a pipe",
    folder_there: "a folder",
    dangling: "No such file",
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_never_opened(reader, whole, tmp_path):
    if reader == "tokenizer":
        pytest.importorskip("tokenizers")
    for kind, what in KINDS.items():
        path = place(reader, shutil.copytree(whole, tmp_path / kind.__name__ / "whole"))
        kind(path)
        if kind is folder_there and reader in ("tensors", "npz", "inception", "tokenizer"):
            continue  # folders are what these are given as well
        refused(lambda path=path: READERS[reader](path), rf"{path.name}: .*{what}")


def test_every_reader_of_interop_goes_through_the_checks():
    """No other function of interop opens a file: a new one has to go through these, and have a row above."""
    ways = ("open(", "read_text(", "read_bytes(", "np.load(", "from_file(", "ZipFile(", "fromfile(")
    files = pathlib.Path(_files.__file__).parent.glob("*.py")
    assert {file.name for file in files if any(way in file.read_text() for way in ways)} == {"_files.py"}


def test_what_is_too_large_is_not_read(whole, tmp_path):
    for reader in (*FILES[:3], "index"):
        path = place(reader, shutil.copytree(whole, tmp_path / reader / "whole"))
        with open(path, "wb") as file:
            file.truncate(2**40)
        refused(
            lambda reader=reader, path=path: READERS[reader](path),
            rf"{path.name}: it has 1 TiB; at most 16 MiB are read",
        )
    header = (2**40).to_bytes(8, "little") + b"{}"
    (tmp_path / "a.safetensors").write_bytes(header)
    refused(lambda: read_tensors(tmp_path / "a.safetensors"), r"its header has 1 TiB; at most 64 MiB are read")


def test_the_systems_own_files_say_that_they_have_no_bytes(monkeypatch):
    """As /proc's do: what is read counts, not what is said."""
    monkeypatch.setattr(_files, "LARGEST_JSON", 10)
    refused(lambda: _files.read_json("/proc/self/status"), "it has more than 10 B")


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_bounds_hold_before_anything_is_built(folder, tmp_path):
    """Every integer of every kind of network, and of every scheduler: the file, key, number and bound are named."""
    count = 0
    for name, config in CONFIGS.items():
        defaults = {**_known.KINDS[name].defaults, **config}
        for key, value in defaults.items():
            kind = value[0] if isinstance(value, list | tuple) else value
            if type(kind) is not int or key in ("sample_size", "downsample_padding"):
                continue
            for huge in (10**9, 10**30, _config.MOST.get(key, 10**6) + 1):
                wrong = [huge] if isinstance(value, list | tuple) else huge
                message = rf"^where: {key} is \[?{huge}\]?; at most {_config.MOST.get(key, 10**6):,} is needed$"
                refused(lambda c={**config, key: wrong}: interop.module_from_config(c, where="where"), message)
                count += 1
    for name, (_, defaults, _) in SCHEDULERS.items():
        for key in (key for key, value in defaults.items() if type(value) is int):
            config = {"_class_name": name, key: 10**9}
            refused(
                lambda c=config: read_scheduler(c, 10, where="where"), rf"^where: {key} is 10{{9}}; at most 1,000,000"
            )
            count += 1
    assert count > 80
    for part, change in (
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"sample_size": 10**9}),
    ):
        (folder / part).write_text(json.dumps({**UNET, **change}))
        key = next(iter(change))
        refused(lambda: interop.from_pretrained(folder), rf"config\.json: {key} is 1000000000; at most")
    refused(
        lambda: interop.module_from_config({**UNET, "block_out_channels": [4] * 10**5}, where="where"),
        r"^where: block_out_channels has 100000 entries; at most 16",
    )
    refused(
        lambda: interop.module_from_config({**UNET, "down_block_types": ["x" * 50] * 10**4}, where="where"),
        r"^where: down_block_types has 10000 entries",
    )


def test_the_largest_that_are_allowed_are_built_at_once():
    """So that the bounds are small enough: a module, and the chain of a scheduler."""
    skipped = ("block_out_channels", "attention_head_dim")
    for config in (UNET, DIT, T5, CONFIG):
        most = {key: _config.MOST[key] for key in config if key in _config.MOST and key not in skipped}
        with cheap():
            interop.module_from_config({**config, **most})
    with cheap():
        read_scheduler({"_class_name": "EDMEulerScheduler", "num_train_timesteps": 10**9}, 10)


@pytest.mark.slow
def test_a_configuration_of_more_than_its_weights_is_refused_before_it_is_built(folder, monkeypatch):
    """By the header alone: no value is read."""
    monkeypatch.setattr(_files._Values, "__call__", None)
    for change, message in (
        (
            {"layers_per_block": 60},
            rf"{NAME}: no tensor down_blocks\.1\.resnets\.59\.conv1\.weight, .*: layers_per_block is",
        ),
        (
            {"layers_per_block": 2},
            rf"{NAME}: no tensor down_blocks\.1\.resnets\.1\.conv1\.weight, which .*config\.json",
        ),
        ({"block_out_channels": [4, 8]}, rf"{NAME}: no tensor down_blocks\.1\.resnets\.0\.conv_shortcut"),
        ({"block_out_channels": [2**16, 2**16]}, rf"{NAME}: .* has shape .*, which does not give"),
        ({"num_class_embeds": 10**6}, rf"{NAME}: class_embedding\.weight has shape .*, which does not give \(1000000"),
        ({"in_channels": 2**16, "out_channels": 2**16}, rf"{NAME}: conv_in\.weight has shape"),
    ):
        (folder / "unet" / "config.json").write_text(json.dumps({**UNET, **change}))
        refused(lambda: interop.from_pretrained(folder), message)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_network_is_compared_with_its_header(name, tmp_path, monkeypatch):
    assert set(CONFIGS) == set(_known.KINDS), "a kind of network without a row"
    config = CONFIGS[name]
    save_pretrained(tmp_path, drawn(config), config)
    monkeypatch.setattr(_files._Values, "__call__", None)
    kind, tensors = _known.KINDS[name], _files.look_up(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, kind.layers: 60}))
    refused(lambda: load_module(tmp_path), rf"safetensors: no tensor .*59\..*: {kind.layers} is 60")
    last = kind.last.format(level=len(config.get("block_out_channels", "_")) - 1, layer=59)
    tensors[last] = next(iter(tensors.values()))
    with pytest.raises(ValueError, match=rf"^where: {kind.layers} is 60, but file has {len(tensors)} tensors in all"):
        _known.check_layers({**config, kind.layers: 60}, "where", tensors, "file")
    wide = {
        "layers_per_block": "block_out_channels",
        "num_layers": "d_model" if name == "t5" else "num_attention_heads",
    }
    key = wide[kind.layers]
    larger = [8] * len(config[key]) if isinstance(config[key], list) else 2 * config[key]
    (tmp_path / "config.json").write_text(json.dumps({**config, key: larger}))
    refused(lambda: load_module(tmp_path), r"safetensors: .* has shape .*, which does not give")


# --- tensors ----------------------------------------------------------------------------------------------------------


def written(path, tensors, *, before=()):
    """A safetensors file by hand: {name: (dtype in the header, array)}, `before`: entries that the header has twice."""
    entries, data = [], b""
    for name, (dtype, array) in tensors.items():
        shape, start = list(array.shape), len(data)
        data += array.tobytes()
        about = {"dtype": dtype, "shape": shape, "data_offsets": [start, len(data)]}
        entries.append(f"{json.dumps(name)}: {json.dumps(about)}")
    entries = [entries[i] for i in before] + entries
    header = ("{" + ", ".join(entries) + "}").encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize(("name", "dtype"), [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)])
def test_float8_is_read_and_computed_in_float32(name, dtype, tmp_path):
    every = np.arange(256, dtype=np.uint8).view(dtype)
    found = read_tensors(written(tmp_path / "a.safetensors", {"x": (name, every.reshape(2, 128))}))["x"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.view(np.uint8), every.view(np.uint8).reshape(2, 128))
    params = drawn(T5)
    tensors = {key: (name, value.astype(dtype)) for key, value in to_tensors(params).items()}
    written(tmp_path / "model.safetensors", tensors)
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "config.json").write_text(json.dumps(T5))
    for computed in (jnp.float32, jnp.bfloat16):
        loaded = load_module(tmp_path, dtype=computed)
        assert loaded.module.dtype == computed
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype(dtype).astype(np.float32), strict=True),
            loaded.params,
            params,
        )


def test_every_dtype_of_the_format_is_read_or_named(tmp_path):
    for name, dtype in _files.DTYPES.items():
        values = np.arange(6).astype(dtype).reshape(2, 3)
        found = read_tensors(written(tmp_path / "a.safetensors", {"x": (name, values), "empty": (name, values[:0])}))
        np.testing.assert_array_equal(found["x"], values, strict=True)
        assert found["empty"].shape == (0, 3)
    written(tmp_path / "a.safetensors", {"x": ("F8_E8M0", np.zeros(4, np.uint8))})
    refused(lambda: read_tensors(tmp_path / "a.safetensors"), r"a\.safetensors: x has dtype F8_E8M0; diffjax reads F64")


def test_weights_that_are_no_floats_are_refused(tmp_path):
    save_pretrained(tmp_path, drawn(T5), T5)
    file, name = tmp_path / "model.safetensors", "encoder.final_layer_norm.weight"
    tensors = read_tensors(file)
    for dtype in (np.int32, np.uint8, np.bool_, np.complex64):
        safetensors.numpy.save_file({**tensors, name: np.ones(4, dtype)}, file)
        message = rf"model\.safetensors: {name} has dtype {np.dtype(dtype)}; weights are floating-point numbers"
        refused(lambda: load_module(tmp_path), message)


@pytest.mark.slow
def test_inception_is_compared_with_its_header(tmp_path):
    image = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
    shapes = jax.eval_shape(InceptionV3(resize=False).init, jax.random.key(0), image)["params"]
    name = next(iter(to_tensors(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes))))
    written(tmp_path / "a.safetensors", {name: ("I32", np.zeros(3, np.int32))})
    with pytest.raises(ValueError, match=r"a\.safetensors: no tensor "):
        interop.read_inception(tmp_path / "a.safetensors")


def test_names_that_are_there_twice_are_refused(folder, tmp_path):
    values = {"x": ("F32", np.ones(2, np.float32)), "y": ("F32", np.ones(2, np.float32))}
    path = written(tmp_path / "a.safetensors", values, before=[0])
    refused(lambda: read_tensors(path), r"a\.safetensors: no safetensors can be read: the key 'x' is there twice")
    for part in FILES[:3]:
        text = (folder / part).read_text()
        (folder / part).write_text(text.replace("{", '{"a": 1, "a": 2, ', 1))
        refused(lambda: interop.from_pretrained(folder), r"\.json: no JSON can be read: the key 'a' is there twice")
        (folder / part).write_text(text)
    np.savez(tmp_path / "a.npz", x=np.ones(2), y=np.ones(2))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content.replace(b"y.npy", b"x.npy"))
    refused(lambda: read_tensors(tmp_path / "a.npz"), r"a\.npz: no \.npz can be read: x is there twice")


def test_an_npz_that_unpacks_to_far_more_than_it_is(tmp_path):
    """A bomb; one whose array says that it is larger than its member; and that same size where the file has it."""
    bomb = tmp_path / "a.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**27,)})
        for _ in range(2**7):
            file.write(bytes(2**20))
    refused(lambda: read_tensors(bomb), r"a\.npz: no \.npz can be read: it has .* KiB and unpacks to 128 MiB")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
        file.write(bytes(80))
    refused(lambda: read_tensors(bomb), r"its header says float64\[1000000000000\], but it holds 80 bytes")
    zeros = {"x": np.zeros((2**10, 2**10), np.float32), "y": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    np.savez_compressed(bomb, **zeros)  # 4 MiB out of 4 KiB, but 4 MiB all the same
    for key, value in read_tensors(bomb).items():
        np.testing.assert_array_equal(value, zeros[key], strict=True)


# --- which file -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_files_are_named_with_the_way_on(folder):
    unet = folder / "unet"
    content = (unet / NAME).read_bytes()
    (unet / NAME).unlink()
    stem = NAME.removesuffix(".safetensors")
    shards = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for names in (shards, shards[:1]):
        for name in names:
            (unet / name).write_bytes(content)
        message = rf"{names[0]}.*: shards are read by their index, and there is none; fetch {NAME}\.index\.json from"
        refused(lambda: interop.from_pretrained(folder), message)
        for name in names:
            (unet / name).unlink()
    variants = [f"{stem}.{variant}.safetensors" for variant in ("bf16", "fp16")]
    for name in variants:
        (unet / name).write_bytes(content)
    message = rf"which of {', '.join(variants)}\? Name the right one {NAME}, or take variant='bf16' or another"
    refused(lambda: interop.from_pretrained(folder), message)
    expected = read_tensors(unet / variants[0])
    for read in (lambda **v: interop.from_pretrained(folder, steps=2, **v), lambda **v: load_module(unet, **v)):
        params = read(variant="fp16").params
        jax.tree.map(np.testing.assert_array_equal, to_tensors(params), expected)
    message = rf"variant 'ema' is {stem}\.ema\.safetensors or model\.ema\.safetensors, but there is {variants[0]}"
    refused(lambda: load_module(unet, variant="ema"), message)
    (unet / variants[0]).rename(unet / NAME)  # the other way that is named
    load_module(unet)
    index = {"weight_map": dict.fromkeys(expected, variants[1])}
    (unet / variants[1]).rename(unet / "shard.safetensors")
    index = {"weight_map": dict.fromkeys(expected, "shard.safetensors")}
    (unet / f"{NAME}.index.fp16.json").write_text(json.dumps(index))
    jax.tree.map(np.testing.assert_array_equal, to_tensors(load_module(unet, variant="fp16").params), expected)


def test_a_name_of_old_beside_the_new_one_is_refused():
    tensors = {f"x.attentions.0.{name}.weight": 0 for name in ("query", "to_q", "key")}
    with pytest.raises(
        ValueError, match=r"^file: x\.attentions\.0\.query\.weight is also in the file by its name since"
    ):
        _known.KINDS["UNet2DModel"].tensors(tensors, "file")
