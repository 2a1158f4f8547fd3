"""The U-Net of DDPM, DDPM++, NCSN++ and ADM, with the names of diffusers' `UNet2DModel`.

    x -> conv_in --> down_blocks.0 --> ... --> down_blocks.n --> mid_block --+       told -> every ResnetBlock
         (image = x) |   every output is a skip      |                       |
                     v                               v                       v
    y <- conv_out* <- SiLU <- conv_norm_out <-- up_blocks.n <-- ... <-- up_blocks.0
                                         (+ image where the output grows along)                    * starts at zero

    told = time_embedding(time_proj(c_noise)) + class_embedding(cond),   time_embedding: Dense -> SiLU -> Dense
    a text as cond: its mean is told, and every attention attends to it too

What a level is made of is a `Stage`; `_unet2d_blocks.py` draws them. Source: Ho et al. 2020, appendix B; Song et al.
2021, appendix H; Dhariwal & Nichol 2021, section 3. `ddpm`, `ddpmpp`, `ncsnpp` and `adm` are those of the papers.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from diffjax._arrays import expand
from diffjax.networks._blocks import GroupNorm, conv
from diffjax.networks._embedding import as_labels, broadcast_noise, check_dropout, dense
from diffjax.networks._noise_embedding import Waves
from diffjax.networks._text import TextTokens, check_label_or_text, pooled
from diffjax.networks._transformer import Table, TwoLayers
from diffjax.networks._unet2d_blocks import DownBlock, MidBlock, Settings, Stage, Told, UpBlock


class UNet2D(nn.Module):
    """A U-Net `(x [b, h, w, c], c_noise [b], cond) -> y [b, h, w, k]`, y in float32 at least.

    h and w must be multiples of 2^(levels - 1).

    Attributes:
      channels: of each level, the finest first.
      down: a `Stage` for each level, the finest first.
      up: a `Stage` for each level, the coarsest first.
      middle: the middle's `Stage`, of which only `attentions` (0 or more), `rescale` and groups count; None: no middle.
      layers: residual blocks a level on the way down; one more on the way up.
      head_channels: of an attention head; one head of all channels where None.
      time_proj: makes features of c_noise, `(c_noise [b], channels[0]) -> [b, k]`: `Waves`, `Positional`,
        `Fourier`, `Learned`.
      width: of what the blocks are told, 4 channels[0] where None.
      num_classes: cond is an integer label [b] in 0 .. num_classes, the last being the null label of classifier-free
        guidance. None: cond is None, a number [b] that is told as c_noise is, or a vector [b, width].
      text_width: cond is a `Text` of such embeddings: its mean is told, and every attention attends to it as well. A
        text without tokens is no condition. Not together with num_classes.
      scale_shift: told as scale and shift after the second norm, not as a shift before it.
      groups: of the last norm; `groups_of(channels[0])` where None.
      epsilon: of all norms.
      padding: zeros (before, after) of a convolution that halves.
      dropout: the probability of dropping a feature in training.
      activation: of the residual blocks.
      center: x is taken to 2 x - 1 first.
      divide: y is divided by c_noise (by sigma: the network is then a score's).
      out_channels: k, that of x where None.
      dtype: of the computation (`jnp.bfloat16`); parameters, statistics and the output are float32.
      remat: keep only what enters each block for the backward pass, and compute the rest of it again.

    Raises:
      ValueError: a field that does not fit, an x that is not [b, h, w, c] or cannot be halved so often, or a cond that
        does not fit.
    """

    channels: tuple[int, ...] = (64, 128, 128)
    down: tuple[Stage, ...] = (Stage(), Stage(), Stage(attentions=2))
    up: tuple[Stage, ...] = (Stage(attentions=3), Stage(), Stage())
    middle: Stage | None = Stage(attentions=1)
    layers: int = 2
    head_channels: int | None = None
    time_proj: nn.Module = Waves()  # the name of its parameters too
    width: int | None = None
    num_classes: int | None = None
    text_width: int | None = None
    scale_shift: bool = False
    groups: int | None = None
    epsilon: float = 1e-6
    padding: tuple[int, int] = (0, 1)
    dropout: float = 0.0
    activation: Callable[[Any], Any] = nn.silu
    center: bool = False
    divide: bool = False
    out_channels: int | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self):
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels: one positive number a level is needed, got {self.channels}")
        for name, stages in (("down", self.down), ("up", self.up)):
            if len(stages) != len(self.channels):
                raise ValueError(f"{name}: one stage a level is needed, {len(self.channels)}, got {len(stages)}")
            if (most := max(stage.attentions for stage in stages)) > self.layers + (name == "up"):
                raise ValueError(f"{name}: at most one attention a block, {self.layers + (name == 'up')}, got {most}")
        if self.layers < 1:
            raise ValueError(f"layers: at least one block a level is needed, got {self.layers}")
        narrow = min(self._attended(), default=None)
        if self.head_channels is not None and narrow is not None and not 1 <= self.head_channels <= narrow:
            raise ValueError(f"head_channels: 1 .. {narrow} or None is needed, got {self.head_channels}")
        check_label_or_text(self.num_classes, self.text_width)
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Any, c_noise: Any, cond: Any = None, *, deterministic: bool = True
    ) -> Float[Array, "b h w k"]:
        _check_image(x, 2 ** (len(self.channels) - 1))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        level = broadcast_noise(c_noise, x).astype(wide)
        told = self._told(level, cond)
        settings = self._settings(deterministic)
        image = x.astype(self.dtype)
        image = 2 * image - 1 if self.center else image
        out = x.shape[-1] if self.out_channels is None else self.out_channels

        h = conv(self.channels[0], 3, self.dtype, name="conv_in")(image)
        h, skips = self._down(h, told, image, settings)
        if self.middle is not None:
            h = MidBlock(self.middle, settings, name="mid_block")(h, told)
        h, image = self._up(h, told, skips, out, settings)
        h = nn.silu(GroupNorm(self.epsilon, self.dtype, self.groups, name="conv_norm_out")(h))
        y = conv(out, 3, self.dtype, name="conv_out", zero=True)(h).astype(wide)
        y = y if image is None else y + image.astype(wide)
        return y / expand(level, y) if self.divide else y

    def _attended(self):
        """Channels of the levels that have attention."""
        levels = [*zip(self.channels, self.down, strict=True), *zip(reversed(self.channels), self.up, strict=True)]
        levels += [] if self.middle is None else [(self.channels[-1], self.middle)]
        return [channels for channels, stage in levels if stage.attentions]

    def _settings(self, deterministic):
        return Settings(
            self.epsilon,
            self.dropout,
            self.scale_shift,
            self.activation,
            self.head_channels,
            self.padding,
            self.dtype,
            deterministic,
            # Not at initialisation, where it would hide the parameters from the one draw that makes them.
            again=self.remat and not self.is_initializing(),
        )

    def _told(self, level, cond):
        width = 4 * self.channels[0] if self.width is None else self.width
        told = TwoLayers(width, level.dtype, name="time_embedding")(self.time_proj(level, self.channels[0]))
        if self.num_classes is not None:
            labels = as_labels(cond, self.num_classes, level.shape)
            found = Table(self.num_classes + 1, width, name="class_embedding")(labels)
            return Told(told + found.astype(told.dtype))
        if self.text_width is not None:
            text = TextTokens(self.text_width, name="text_tokens")(cond)
            mean = pooled(text, told.dtype)
            return Told(told + dense(width, told.dtype, name="text_embedding")(mean), text)
        if cond is None:
            return Told(told)
        vector = _as_numbers(cond, width).astype(told.dtype)
        if vector.ndim == 1:
            vector = TwoLayers(width, told.dtype, name="class_embedding")(self.time_proj(vector, self.channels[0]))
        return Told(told + vector)

    def _down(self, h, told, image, settings):
        skips = [h]
        for i, (channels, stage) in enumerate(zip(self.channels, self.down, strict=True)):
            last = i == len(self.channels) - 1
            block = DownBlock(stage, settings, channels, self.layers, last, name=f"down_blocks__{i}")
            h, image, outputs = block(h, told, image)
            skips += outputs
        return h, skips

    def _up(self, h, told, skips, out, settings):
        image = None
        for i, (channels, stage) in enumerate(zip(reversed(self.channels), self.up, strict=True)):
            last = i == len(self.channels) - 1
            block = UpBlock(stage, settings, channels, out, self.layers + 1, last, name=f"up_blocks__{i}")
            h, image = block(h, told, image, skips)
        return h, image


def _check_image(x, factor):
    if x.ndim != 4:
        raise ValueError(f"x: images [b, height, width, channels] are needed, got shape {x.shape}")
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f"x: height and width must be multiples of {factor}, got shape {x.shape}; pad the images")


def _as_numbers(cond, width):
    vector = jnp.asarray(cond)
    if not jnp.issubdtype(vector.dtype, jnp.floating) or vector.ndim > 2 or vector.shape[1:] not in ((), (width,)):
        raise ValueError(
            f"cond: a float [b] or a vector [b, {width}] is needed without num_classes, got {vector.dtype} "
            f"{vector.shape}; for integer labels set num_classes"
        )
    return vector
