"""Published weights: a folder (or repository) of diffusers -> the arguments of `sample`, and back.

folder/model_index.json                        a pipeline: its parts are sub-folders (or the folder itself)
folder/unet or transformer/config.json ----> Linen module, shapes --+
                           *.safetensors --> tensors ---------------+--> network, params
folder/scheduler/scheduler_config.json ----> process, parameterisation, ts, stepper, thresholds
folder/vae/ -------------------------------> LatentSpace
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax._numbers import checked_numbers
from diffjax._typing import Cond, Denoiser, Params
from diffjax.interop._config import check_bound, shown
from diffjax.interop._files import NAMES, look_up, read_json, weights_in, write_json, write_tensors
from diffjax.interop._hub import local_folder
from diffjax.interop._keys import to_params, to_tensors
from diffjax.interop._known import check_layers, kind_of, module_from_config, parameter_shapes
from diffjax.interop._scheduler import read_scheduler
from diffjax.losses import prediction_only
from diffjax.networks import AutoencoderKL, LatentSpace
from diffjax.networks._adapters import LinenModule, from_linen
from diffjax.parameterisation._denoiser import make_denoiser
from diffjax.parameterisation._diffusion import Diffusion
from diffjax.process import AbstractGaussianProcess
from diffjax.samplers import AbstractStepper


class Pretrained(NamedTuple):
    """A trained diffusion model; see `from_pretrained`.

    Attributes:
      diffusion: the network, the forward process and what the network predicts, with the file's own clock.
      params: the network's parameters, a tree of arrays.
      denoiser_transforms: thresholds `(denoiser) -> denoiser`, to be applied in order, after any guidance.
      ts: the grid, descending, shape [n] or [n + 1].
      stepper: the scheduler's method.
      final_denoise: for `sample`: whether the last evaluation gives x0.
      shape: of one sample (h, w, c), or None if the file has no size.
      latents: of a latent diffusion model: `latents.decode` turns samples into images; None otherwise.
    """

    diffusion: Diffusion
    params: Params
    denoiser_transforms: tuple[Callable[[Denoiser], Denoiser], ...]
    ts: Float[np.ndarray, " points"]
    stepper: AbstractStepper
    final_denoise: bool
    shape: tuple[int, int, int] | None
    latents: LatentSpace | None

    @property
    def process(self) -> AbstractGaussianProcess:
        """The forward process, `diffusion.process`."""
        return self.diffusion.process


class Loaded(NamedTuple):
    """A published network: `module` (Linen), `params` (a tree of arrays), and the file's `config`."""

    module: LinenModule
    params: Params
    config: dict[str, Any]


@checked_numbers
def from_pretrained(
    source: str | Path,
    *,
    steps: int = 50,
    dtype: DTypeLike = jnp.float32,
    revision: str | None = None,
    variant: str | None = None,
) -> Pretrained:
    """A diffusion model from a folder that diffusers wrote, or a repository of the Hugging Face Hub.

        p = from_pretrained("google/ddpm-cifar10-32", steps=50)
        xt = prior(key, p.process, (16, *p.shape))
        x0 = sample(key, p.process, denoiser_of(p), xt, p.ts, p.stepper, final_denoise=p.final_denoise)

    Any other process, grid, stepper or guidance of diffjax may take the place of the file's. Of a network that predicts
    its variance as well, only the mean's half is used. Where x0 is clipped (`clip_sample`), eps follows from the
    clipped x0, which a DDIMPipeline does with `use_clipped_model_output=True` alone: the same for a denoiser that stays
    in range, and as far apart as the data are wide for one that does not. `read_scheduler` states by how much ours
    differs from diffusers' otherwise.

    Args:
      source: the folder of a pipeline, or of a network with its scheduler_config.json; or "owner/name".
      steps: evaluations of the network that the grid is for, at least 2.
      dtype: of the computation; parameters are float32 at least.
      revision: of a repository: branch, tag or commit.
      variant: of the weights, where there are several: "fp16" for diffusion_pytorch_model.fp16.safetensors.

    Raises:
      ValueError: there is no such folder, it holds pickled weights only, or something that diffjax does not have: a
        key, a value, a size beyond its bound or not that of the weights, a file that is no regular one. The file and
        the key or tensor are named, before a network is built.
    """
    folder = local_folder(source, revision, lambda folder: [part for _, part in _pipeline(folder).values()], variant)
    parts = _pipeline(folder)
    network = parts.get("unet") or parts.get("transformer")
    if network is None:
        raise ValueError(f"{folder}: there is no unet or transformer here")
    where, scheduler = folder / network[1], folder / parts["scheduler"][1] / "scheduler_config.json"
    if not os.path.lexists(scheduler):
        raise ValueError(f"{scheduler}: there is none; `load_module` reads a network by itself")
    sampling = read_scheduler(read_json(scheduler), steps, where=str(scheduler))
    module, params, config = _load(where, dtype, variant)
    if (images := kind_of(config, str(where)).images) is None:
        raise ValueError(f"{where}: {type(module).__name__} is no diffusion's network; `load_module` reads it")
    shape = _images({**images, **config}, where / "config.json")
    latents = None
    if "vae" in parts:
        autoencoder = _load(folder / parts["vae"][1], dtype, variant)
        assert isinstance(autoencoder.module, AutoencoderKL)
        latents = LatentSpace(autoencoder.params, autoencoder.module)
    return Pretrained(
        diffusion=Diffusion(prediction_only(from_linen(module)), sampling.process, sampling.parameterisation),
        params=params,
        denoiser_transforms=sampling.denoiser_transforms,
        ts=sampling.ts,
        stepper=sampling.stepper,
        final_denoise=sampling.final_denoise,
        shape=shape,
        latents=latents,
    )


def denoiser_of(
    pretrained: Pretrained, cond: Cond = None, *, guide: Callable[[Denoiser], Denoiser] | None = None
) -> Denoiser:
    """`D(xt [b, *d], t) -> x0_hat [b, *d]` of a pretrained model.

    Args:
      pretrained: from `from_pretrained`.
      cond: conditions, leaves [b, ...], or None.
      guide: guidance `(denoiser) -> denoiser`, such as a partial `classifier_free`; the file's thresholds come after.
    """
    p = pretrained
    denoiser: Denoiser = make_denoiser(p.diffusion, p.params, cond)
    denoiser = denoiser if guide is None else guide(denoiser)
    for transform in p.denoiser_transforms:
        denoiser = transform(denoiser)
    return denoiser


def load_module(
    source: str | Path,
    *,
    part: str = "",
    dtype: DTypeLike = jnp.float32,
    revision: str | None = None,
    variant: str | None = None,
) -> Loaded:
    """One network of a folder or repository by itself: a U-Net, a DiT, an autoencoder, a T5 encoder.

        vae = load_module("stabilityai/sd-vae-ft-mse")
        latents = LatentSpace(vae.params, vae.module)

    Args:
      source: a folder with config.json and .safetensors, or "owner/name".
      part: a sub-folder of it ("vae").
      dtype: of the computation; parameters are float32 at least.
      revision: of a repository: branch, tag or commit.
      variant: of the weights, as `from_pretrained`.

    Raises:
      ValueError: as `from_pretrained`.
    """
    return _load(local_folder(source, revision, lambda folder: [part], variant) / part, dtype, variant)


def save_pretrained(
    folder: str | Path,
    params: Params,
    config: Mapping[str, Any],
    *,
    scheduler: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network so that diffusers or transformers, and `from_pretrained`, read it.

    Args:
      folder: is made; nothing else in it is touched.
      params: the parameters, a tree of arrays, of the module that `module_from_config(config)` is.
      config: the content of config.json; `_class_name` (or `model_type`) is the network's class.
      scheduler: the content of scheduler_config.json, with its `_class_name`. With it and a `UNet2DModel` the folder
        is a pipeline (unet/, scheduler/, model_index.json); with another network it is in the folder of the weights.

    Raises:
      ValueError: the configuration does not fit the parameters, or is none that diffjax has; a value is not finite.
    """
    folder = Path(folder)
    tensors = to_tensors(params)
    where = str(folder / "config.json")
    module = module_from_config(config, where=where)
    check_layers(config, where, tensors, "params")
    to_params(tensors, parameter_shapes(module, config, where=where), where=where)
    if scheduler is not None:
        read_scheduler(scheduler, 2, where=str(folder / "scheduler_config.json"))
    name = config.get("_class_name", "t5")
    is_pipeline = scheduler is not None and name == "UNet2DModel"
    place = folder / "unet" if is_pipeline else folder
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "config.json", config)
    write_tensors(place / NAMES[name == "t5"], tensors)
    if scheduler is None:
        return
    place = folder / "scheduler" if is_pipeline else folder
    place.mkdir(exist_ok=True)
    write_json(place / "scheduler_config.json", scheduler)
    if is_pipeline:
        pipeline = "DDIMPipeline" if scheduler["_class_name"] == "DDIMScheduler" else "DDPMPipeline"
        parts = {"unet": ["diffusers", name], "scheduler": ["diffusers", scheduler["_class_name"]]}
        write_json(folder / "model_index.json", {"_class_name": pipeline, "_diffusers_version": "0.30.0", **parts})


def _pipeline(folder):
    """Part -> (class, sub-folder or ""), as model_index.json says; without one, the folder is the network's."""
    index = folder / "model_index.json"
    if not os.path.lexists(index):
        name = read_json(folder / "config.json").get("_class_name")
        return {"unet": (name, ""), "scheduler": (None, "")}
    parts = {}
    for key, value in read_json(index).items():
        if key.startswith("_") or not (isinstance(value, list) and len(value) == 2) or value[1] is None:
            continue
        if key not in ("unet", "transformer", "scheduler", "vae"):
            raise ValueError(f"{index}: {key} is {value[1]!r}; diffjax has unet, transformer, vae and scheduler")
        parts[key] = (value[1], key if (folder / key).is_dir() else "")
    if "scheduler" not in parts:
        raise ValueError(f"{index}: there is no scheduler")
    return parts


def _images(config, where):
    """(h, w, c) of a sample, or None if the configuration has no size."""
    size, c, answers = (config[key] for key in ("sample_size", "in_channels", "out_channels"))
    if answers not in (None, c, 2 * c):
        raise ValueError(f"{where}: out_channels is {answers}; in_channels {c} is needed, or twice (mean and variance)")
    if size is None:
        return None
    sides = size if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{where}: sample_size is {shown(size)}; a positive integer, two of them or null is needed")
    check_bound("sample_size", size, str(where))
    return (*sides, c)


def _load(folder, dtype, variant):
    where = str(folder / "config.json")
    config = read_json(where)
    module = module_from_config(config, where=where).clone(dtype=dtype)
    file = str(weights_in(folder, variant))
    tensors = kind_of(config, where).tensors(look_up(file), file)
    check_layers(config, where, tensors, file)
    params = to_params(tensors, parameter_shapes(module, config, where=where), where=file)
    wide = jnp.promote_types(dtype, jnp.float32)
    return Loaded(module, jax.tree.map(lambda leaf: jnp.asarray(leaf, wide), params), config)
