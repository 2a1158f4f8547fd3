"""Networks: what learns. Only this package knows of Flax.

    from_linen(module)     \\
    from_nnx(build)         >--->  Network(init, apply)  --->  parameters are an ordinary tree, apply a pure function
    from_equinox(build)    /

`MLP` and `UNet` are Linen modules `(x, c_noise, cond) -> y`; `from_linen` makes a network of them. Anything else that
can be written as two pure functions is a network as well: `Network(init, apply)`.
"""

from diffjax.networks._adapters import from_equinox as from_equinox, from_linen as from_linen, from_nnx as from_nnx
from diffjax.networks._autoencoder import AutoencoderKL as AutoencoderKL
from diffjax.networks._classifier import Classifier as Classifier, classifier_features as classifier_features
from diffjax.networks._dit import DiT as DiT
from diffjax.networks._dit_presets import dit_b as dit_b, dit_l as dit_l, dit_s as dit_s, dit_xl as dit_xl
from diffjax.networks._edm2 import EDM2UNet as EDM2UNet
from diffjax.networks._efficient_unet import Cascade as Cascade, EfficientUNet as EfficientUNet
from diffjax.networks._inception import (
    InceptionFeatures as InceptionFeatures,
    InceptionV3 as InceptionV3,
    inception_features as inception_features,
)
from diffjax.networks._latents import LatentSpace as LatentSpace
from diffjax.networks._magnitude import normalise_weights as normalise_weights
from diffjax.networks._mlp import MLP as MLP, PlainMLP as PlainMLP
from diffjax.networks._noise_embedding import (
    Fourier as Fourier,
    Learned as Learned,
    Positional as Positional,
    Waves as Waves,
)
from diffjax.networks._t5 import T5Encoder as T5Encoder
from diffjax.networks._text import Text as Text
from diffjax.networks._trained import trained as trained
from diffjax.networks._unet import UNet as UNet
from diffjax.networks._unet2d import UNet2D as UNet2D
from diffjax.networks._unet2d_blocks import (
    Stage as Stage,
    input_residual as input_residual,
    input_skip as input_skip,
    output_residual as output_residual,
    output_skip as output_skip,
)
from diffjax.networks._unet2d_presets import adm as adm, ddpm as ddpm, ddpmpp as ddpmpp, ncsnpp as ncsnpp
from diffjax.networks._uvit import UViT as UViT
