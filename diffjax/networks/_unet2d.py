"""The U-Net of DDPM, DDPM++, NCSN++ and ADM, with the names of diffusers' `UNet2DModel`.

    x -> conv_in --> down_blocks.0 --> ... --> down_blocks.n --> mid_block --+       emb -> every ResidualBlock
         (image = x) |   every output is a skip      |                       |
                     v                               v                       v
    y <- conv_out* <- SiLU <- conv_norm_out <-- up_blocks.n <-- ... <-- up_blocks.0
                                         (+ image where the output grows along)                    * starts at zero

    emb = time_embedding(noise_features(c_noise)) + class_embedding(cond),   time_embedding: Dense -> SiLU -> Dense
    a text as cond: its mean is embedded, and every attention attends to it too

A level's design is a `Stage`; `_unet2d_blocks.py` draws them. Source: Ho et al. 2020, appendix B; Song et al.
2021, appendix H; Dhariwal & Nichol 2021, section 3. `ddpm`, `ddpmpp`, `ncsnpp` and `adm` are those of the papers.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from diffjax._arrays import expand
from diffjax._numbers import checked_numbers
from diffjax._typing import Cond
from diffjax.networks._blocks import MidBlock, check_levels, conv
from diffjax.networks._embedding import ConditionEmbedding, EmbeddingLayers
from diffjax.networks._layers import Function, Table, TwoLayers, check_dropout, float32_at_least
from diffjax.networks._noise_features import Waves
from diffjax.networks._norm import GroupNorm
from diffjax.networks._second_time import broadcast_times, first_time
from diffjax.networks._text import TextTokens, check_text_use, split_text
from diffjax.networks._unet2d_blocks import DownBlock, Settings, Stage, UpBlock


@checked_numbers
class UNet2D(nn.Module):
    """A U-Net `(x [b, h, w, c], c_noise [b] or [b, 2], cond) -> y [b, h, w, k]`, y in float32 at least.

    h and w must be multiples of 2^(levels - 1).

    Attributes:
      channels: of each level, the finest first.
      down: a `Stage` for each level, the finest first.
      up: a `Stage` for each level, the coarsest first.
      middle: the middle's `Stage`, of which only `attentions` (0 or more), `rescale` and groups count; None: no middle.
      blocks: residual blocks a level on the way down; one more on the way up.
      head_channels: of an attention head; one head of all channels where None.
      noise_features: makes features of c_noise, `(c_noise [b], channels[0]) -> [b, k]`: `Waves`, `Positional`,
        `Fourier`, `Learned`.
      emb_width: features of the embedding that the blocks are conditioned on, 4 channels[0] where None.
      num_classes: cond is an integer label [b] in 0 .. num_classes, the last being the null label of classifier-free
        guidance. None: cond is None, a number [b] that is embedded as c_noise is, or a vector [b, emb_width].
      text_width: cond is a `Text` of such embeddings: its mean is embedded, and every attention attends to it as well.
        A text without tokens is no condition. With num_classes as well, cond is a `Cascade` of a text and a label.
      text_use: "both", "pooled" (the mean alone) or "attention" (without it).
      scale_shift: the embedding is a scale and a shift after the second norm, not a shift before it.
      groups: of the last norm; `groups_of(channels[0])` where None.
      norm_epsilon: epsilon of all norms.
      padding: zeros (before, after) of a convolution that halves.
      dropout: the probability of dropping a feature in training.
      activation: of the residual blocks.
      center: x is taken to 2 x - 1 first.
      divide: y is divided by c_noise (by sigma: the network is then a score's).
      out_channels: k, that of x where None.
      dtype: of the computation (`jnp.bfloat16`); parameters, statistics and the output are float32.
      remat: recompute each block in the backward pass instead of storing its activations.

    Raises:
      ValueError: a field that does not fit, an x that is not [b, h, w, c] or cannot be halved so often, or a cond that
        does not fit.
    """

    channels: tuple[int, ...] = (64, 128, 128)
    down: tuple[Stage, ...] = (Stage(), Stage(), Stage(attentions=2))
    up: tuple[Stage, ...] = (Stage(attentions=3), Stage(), Stage())
    middle: Stage | None = Stage(attentions=1)
    blocks: int = 2
    head_channels: int | None = None
    noise_features: nn.Module = Waves()
    emb_width: int | None = None
    num_classes: int | None = None
    text_width: int | None = None
    text_use: str = "both"
    scale_shift: bool = False
    groups: int | None = None
    norm_epsilon: float = 1e-6
    padding: tuple[int, int] = (0, 1)
    dropout: float = 0.0
    activation: Function = nn.silu
    center: bool = False
    divide: bool = False
    out_channels: int | None = None
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __post_init__(self):
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels: one positive number a level is needed, got {self.channels}")
        for name, stages in (("down", self.down), ("up", self.up)):
            if len(stages) != len(self.channels):
                raise ValueError(f"{name}: one stage a level is needed, {len(self.channels)}, got {len(stages)}")
            if (most := max(stage.attentions for stage in stages)) > self.blocks + (name == "up"):
                raise ValueError(f"{name}: at most one attention a block, {self.blocks + (name == 'up')}, got {most}")
        if self.blocks < 1:
            raise ValueError(f"blocks: at least one block a level is needed, got {self.blocks}")
        narrow = min(self._attended(), default=None)
        if self.head_channels is not None and narrow is not None and not 1 <= self.head_channels <= narrow:
            raise ValueError(f"head_channels: 1 .. {narrow} or None is needed, got {self.head_channels}")
        check_text_use(self.text_use)
        check_dropout(self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], c_noise: ArrayLike, cond: Cond = None, *, deterministic: bool = True
    ) -> Float[Array, "b h w k"]:
        check_levels(x, len(self.channels), "channels")
        wide = float32_at_least(self.dtype)
        c_noise = broadcast_times(self, c_noise, x).astype(wide)
        level = first_time(c_noise)
        embedding = self._embedding()
        text, cond = split_text(cond, self.num_classes, self.text_width)
        tokens = None if self.text_width is None else TextTokens(self.text_width, name="text_tokens")(text)
        emb = embedding(c_noise, cond, text=None if self.text_use == "attention" else tokens)
        text = None if self.text_use == "pooled" else tokens
        settings = self._settings(deterministic)
        image = x.astype(self.dtype)
        image = 2 * image - 1 if self.center else image
        out = x.shape[-1] if self.out_channels is None else self.out_channels

        h = conv(self.channels[0], 3, self.dtype, name="conv_in")(image)
        h, skips = self._down(h, emb, text, image, settings)
        if self.middle is not None:
            attention = settings.attention(self.middle) if self.middle.attentions else None
            mid_block = MidBlock(settings.block(self.middle), attention, self.remat, name="mid_block")
            h = mid_block(h, emb, text)
        h, image = self._up(h, emb, text, skips, out, settings)
        h = nn.silu(GroupNorm(self.norm_epsilon, self.dtype, self.groups, name="conv_norm_out")(h))
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
            self.norm_epsilon,
            self.dropout,
            self.scale_shift,
            self.activation,
            self.head_channels,
            self.padding,
            self.dtype,
            deterministic,
            self.remat,
        )

    def _embedding(self):
        """The embedding; its layers are in the network's own scope, as in diffusers."""
        width = 4 * self.channels[0] if self.emb_width is None else self.emb_width
        features = self.noise_features.clone(parent=self, name="time_proj")  # the name of trained frequencies
        layers = embedding_layers(lambda level: features(level, self.channels[0]))
        wide = float32_at_least(self.dtype)
        embedding = ConditionEmbedding(width, self.num_classes, dtype=wide, layers=layers, name="embedding")
        nn.share_scope(self, embedding)
        return embedding

    def _down(self, h, emb, text, image, settings):
        skips = [h]
        for i, (channels, stage) in enumerate(zip(self.channels, self.down, strict=True)):
            last = i == len(self.channels) - 1
            block = DownBlock(stage, settings, channels, self.blocks, last, name=f"down_blocks__{i}")
            h, image, outputs = block(h, emb, text, image)
            skips += outputs
        return h, skips

    def _up(self, h, emb, text, skips, out, settings):
        image = None
        for i, (channels, stage) in enumerate(zip(reversed(self.channels), self.up, strict=True)):
            last = i == len(self.channels) - 1
            block = UpBlock(stage, settings, channels, out, self.blocks + 1, last, name=f"up_blocks__{i}")
            h, image = block(h, emb, text, image, skips)
        return h, image


def embedding_layers(features: Callable[[Float[Array, " b"]], Float[Array, "b k"]]) -> EmbeddingLayers:
    """diffusers' layers of a `ConditionEmbedding`, and their names, for features `(c_noise [b]) -> [b, k]`."""

    def noise(module: ConditionEmbedding, c_noise: Float[Array, " b"]) -> Float[Array, "b width"]:
        return TwoLayers(module.width, c_noise.dtype, name="time_embedding")(features(c_noise))

    def label(module: ConditionEmbedding, labels: Int[Array, " b"]) -> Float[Array, "b width"]:
        assert module.num_classes is not None
        row = Table(module.num_classes + 1, module.width, name="class_embedding")(labels)
        return row.astype(module.dtype)

    def number_or_vector(module: ConditionEmbedding, cond: Cond) -> Float[Array, "b width"]:
        vector = _as_numbers(cond, module.width).astype(module.dtype)
        if vector.ndim == 2:
            return vector
        return TwoLayers(module.width, module.dtype, name="class_embedding")(features(vector))

    return EmbeddingLayers(noise, label, vector=number_or_vector, activation=lambda emb: emb)


def _as_numbers(cond, width):
    vector = jnp.asarray(cond)
    if not jnp.issubdtype(vector.dtype, jnp.floating) or vector.ndim > 2 or vector.shape[1:] not in ((), (width,)):
        raise ValueError(
            f"cond: a float [b] or a vector [b, {width}] is needed without num_classes, got {vector.dtype} "
            f"{vector.shape}; for integer labels set num_classes"
        )
    return vector
