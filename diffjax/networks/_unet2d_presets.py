"""The U-Nets of four papers, as fields of `UNet2D`.

    ddpm     35.7 million parameters    Ho et al. 2020, appendix B: CIFAR-10
    ddpmpp   61.8                       Song et al. 2021, appendix H: DDPM++, residual resampling, sums by sqrt 2
    ncsnpp   62.8                       the same, NCSN++: binomial filters, residual input, Fourier features
    adm      295.9 with 1000 classes    Dhariwal & Nichol 2021, table 4: ImageNet 64 x 64, scale and shift, heads of 64

c_noise is as diffjax's parameterisations make it, of order one (`Waves`; ncsnpp: `Fourier`, as in Karras et al.
2022, table 7). For the papers' own clock 0 .. 999 ask for `noise_features=Positional()` by `.clone`, as for any field.
"""

import math
from collections.abc import Sequence

from diffjax._numbers import checked_numbers
from diffjax.networks._noise_features import Fourier
from diffjax.networks._resample import BINOMIAL
from diffjax.networks._unet2d import UNet2D
from diffjax.networks._unet2d_blocks import Pyramid, Stage, input_residual


@checked_numbers
def ddpm(
    channels: Sequence[int] = (128, 256, 256, 256),
    *,
    attention: Sequence[int] = (1,),
    blocks: int = 2,
    dropout: float = 0.1,
    num_classes: int | None = None,
    text_width: int | None = None,
) -> UNet2D:
    """DDPM's U-Net (Ho et al. 2020).

    For images [b, h, w, c]. For 256 x 256 it has channels 128 (1, 1, 2, 2, 4, 4), attention (4,).

    Args:
      channels: of each level, the finest first.
      attention: the levels that have it, 0 the finest; the middle always has.
      blocks: residual blocks a level.
      dropout: probability in training.
      num_classes: cond is a label 0 .. num_classes, the last the null label; None: no labels.
      text_width: cond is a `Text` of such embeddings, with num_classes a `Cascade` of a text and a label.
    """
    fields = {"dropout": dropout, "num_classes": num_classes, "text_width": text_width}
    return _network(Stage(), channels, attention, blocks, blocks + 1, **fields)


@checked_numbers
def ddpmpp(
    channels: Sequence[int] = (128, 256, 256, 256),
    *,
    attention: Sequence[int] = (1,),
    blocks: int = 4,
    dropout: float = 0.1,
    num_classes: int | None = None,
    text_width: int | None = None,
) -> UNet2D:
    """DDPM++ (Song et al. 2021).

    For images [b, h, w, c]; arguments as `ddpm`'s. `blocks` 8 is the deep one.
    """
    stage = Stage(residual=True, shortcut=True, rescale=math.sqrt(2))
    fields = {"dropout": dropout, "num_classes": num_classes, "text_width": text_width}
    return _network(stage, channels, attention, blocks, 1, **fields)


@checked_numbers
def ncsnpp(
    channels: Sequence[int] = (128, 256, 256, 256),
    *,
    attention: Sequence[int] = (1,),
    blocks: int = 4,
    dropout: float = 0.1,
    num_classes: int | None = None,
    text_width: int | None = None,
    input_pyramid: Pyramid | None = input_residual,
    output_pyramid: Pyramid | None = None,
) -> UNet2D:
    """NCSN++ (Song et al. 2021).

    For images [b, h, w, c]; arguments as `ddpm`'s. Where images are large the paper has `blocks` 2,
    `input_pyramid=input_skip, output_pyramid=output_skip`: the input shrinks along, the output grows along.
    """
    stage = Stage(residual=True, shortcut=True, rescale=math.sqrt(2), taps=BINOMIAL)
    fields = {"dropout": dropout, "num_classes": num_classes, "text_width": text_width}
    network = _network(stage, channels, attention, blocks, 1, **fields)
    down = tuple(stage._replace(pyramid=input_pyramid) for stage in network.down)
    up = tuple(stage._replace(pyramid=output_pyramid) for stage in network.up)
    return network.clone(down=down, up=up, noise_features=Fourier())


@checked_numbers
def adm(
    channels: Sequence[int] = (192, 384, 576, 768),
    *,
    attention: Sequence[int] = (1, 2, 3),
    blocks: int = 3,
    dropout: float = 0.1,
    num_classes: int | None = 1000,
    text_width: int | None = None,
    head_channels: int = 64,
) -> UNet2D:
    """ADM's U-Net (Dhariwal & Nichol 2021).

    For images [b, h, w, c]; arguments as `ddpm`'s. For 256 x 256 it has channels 256 (1, 1, 2, 2, 4, 4),
    attention (3, 4, 5), blocks 2, no dropout.
    """
    fields = {"dropout": dropout, "num_classes": num_classes, "text_width": text_width}
    network = _network(Stage(residual=True), channels, attention, blocks, blocks + 1, **fields)
    return network.clone(scale_shift=True, head_channels=head_channels, norm_epsilon=1e-5)


def _network(stage, channels, attention, blocks, attentions_up, **fields):
    if not set(attention) <= set(range(len(channels))):
        raise ValueError(f"attention: levels are 0 .. {len(channels) - 1}, got {tuple(attention)}")
    down = [stage._replace(attentions=blocks * (i in attention)) for i in range(len(channels))]
    up = [stage._replace(attentions=attentions_up * (i in attention)) for i in range(len(channels))]
    middle = Stage(attentions=1, rescale=stage.rescale)
    return UNet2D(tuple(channels), tuple(down), tuple(reversed(up)), middle, blocks, **fields)
