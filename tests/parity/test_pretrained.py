"""A folder of diffusers through `from_pretrained`: ten DDIM steps end where diffusers' do; and back by
`save_pretrained`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_pretrained as torch_side
from tools import load_fixture, weights

from diffjax import sample
from diffjax.interop import denoiser_of, from_pretrained, load_module, save_pretrained, write_tensors

CASES = list(torch_side.CASES)


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


def ten_steps(folder, start):
    p = from_pretrained(folder, steps=torch_side.STEPS)
    assert p.shape == start.shape[1:]
    xt = jnp.asarray(start, jnp.float32)
    return sample(jax.random.key(0), p.process, denoiser_of(p), xt, p.ts, p.stepper, final_denoise=p.final_denoise)


def assert_equal(ours, expected):
    assert np.max(np.abs(np.asarray(ours) - expected)) <= 1e-4 * np.max(np.abs(expected))


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_ten_steps_frozen(name, tmp_path):
    config, shapes, expected = load_fixture(name)
    assert config == json.loads(json.dumps(torch_side.CASES[name]))
    for part, file in (("unet", "config.json"), ("scheduler", "scheduler_config.json")):
        (tmp_path / part).mkdir()
        (tmp_path / part / file).write_text(json.dumps(config[part]))
    tensors = {key: value.astype(np.float32) for key, value in weights(shapes).items()}
    write_tensors(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", tensors)
    parts = {part: ["diffusers", config[part]["_class_name"]] for part in ("unet", "scheduler")}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDIMPipeline", **parts}))
    assert_equal(ten_steps(tmp_path, expected["start"]), expected["end"])


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_ten_steps_live(name, tmp_path):
    """diffusers' own folder, in shards; and what we save of it, read by diffusers again."""
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = torch_side.CASES[name]
    network, scheduler = torch_side.build(config)
    start, end = torch_side.ten_steps(network, scheduler, config)
    diffusers.DDIMPipeline(network.float(), scheduler).save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    # The pipeline's constructor replaces the scheduler by a DDIM of the same configuration.
    assert_equal(ten_steps(tmp_path / "theirs", start), end)
    ours = load_module(tmp_path / "theirs", part="unet")
    save_pretrained(tmp_path / "ours", ours.params, ours.config, scheduler=config["scheduler"])
    assert_equal(ten_steps(tmp_path / "ours", start), end)
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "ours")
    again = torch_side.ten_steps(pipeline.unet.double(), pipeline.scheduler, config)[1]
    assert_equal(again, end)
