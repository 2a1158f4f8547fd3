"""Networks: what learns. Only this package knows of Flax.

    from_linen(module)     \\
    from_nnx(build)         >--->  Network(init, apply)  --->  parameters are an ordinary tree, apply a pure function
    from_equinox(build)    /

`MLP` and `UNet` are Linen modules `(x, c_noise, cond) -> y`; `from_linen` makes a network of them. Anything else that
can be written as two pure functions is a network as well: `Network(init, apply)`. For a few-step model c_noise is
[b, 2], the clock at t and at s <= t: `with_second_time` makes a network's trained parameters ready for it.
"""

from diffjax.networks._adversarial import (
    Discriminator as Discriminator,
    ImageDiscriminator as ImageDiscriminator,
    ImageGenerator as ImageGenerator,
    LatentNetwork as LatentNetwork,
    WithLatent as WithLatent,
)
from diffjax.networks._attention import (
    Attention as Attention,
    ImageAttention as ImageAttention,
    attention as attention,
)
from diffjax.networks._autoencoder import AutoencoderKL as AutoencoderKL, LatentSpace as LatentSpace
from diffjax.networks._blocks import ResidualBlock as ResidualBlock, enlarge as enlarge
from diffjax.networks._classifier import (
    Classifier as Classifier,
    classifier_features as classifier_features,
    classifier_of as classifier_of,
)
from diffjax.networks._coders import (
    ImageDecoder as ImageDecoder,
    ImageEncoder as ImageEncoder,
    Perceptron as Perceptron,
)
from diffjax.networks._convolution import convolution as convolution
from diffjax.networks._dit import DiT as DiT, dit_b as dit_b, dit_l as dit_l, dit_s as dit_s, dit_xl as dit_xl
from diffjax.networks._edm2 import EDM2UNet as EDM2UNet, edm2_layers as edm2_layers
from diffjax.networks._efficient_unet import Cascade as Cascade, EfficientUNet as EfficientUNet
from diffjax.networks._embedding import ConditionEmbedding as ConditionEmbedding, EmbeddingLayers as EmbeddingLayers
from diffjax.networks._factors import (
    FactorClassifier as FactorClassifier,
    factor_features as factor_features,
    read_factors as read_factors,
    split_factors as split_factors,
)
from diffjax.networks._inception import (
    InceptionFeatures as InceptionFeatures,
    InceptionV3 as InceptionV3,
    inception_features as inception_features,
)
from diffjax.networks._init import draw_parameters as draw_parameters
from diffjax.networks._layers import layer_norm as layer_norm, rms_norm as rms_norm
from diffjax.networks._magnitude import (
    MPConv as MPConv,
    MPFourier as MPFourier,
    MPLabels as MPLabels,
    mp_concatenate as mp_concatenate,
    mp_silu as mp_silu,
    mp_sum as mp_sum,
    normalise_weights as normalise_weights,
    unit_rms as unit_rms,
)
from diffjax.networks._masked import MaskedDecoder as MaskedDecoder, causal_mask as causal_mask
from diffjax.networks._mlp import MLP as MLP, PlainMLP as PlainMLP
from diffjax.networks._noise_features import (
    Fourier as Fourier,
    Learned as Learned,
    Positional as Positional,
    Waves as Waves,
    fourier_features as fourier_features,
    timestep_features as timestep_features,
    trained as trained,
)
from diffjax.networks._norm import GroupNorm as GroupNorm
from diffjax.networks._patch_discriminator import PatchDiscriminator as PatchDiscriminator
from diffjax.networks._positions import rotate as rotate, rotation_angles as rotation_angles
from diffjax.networks._resample import (
    BINOMIAL as BINOMIAL,
    BOX as BOX,
    blur as blur,
    double as double,
    halve as halve,
)
from diffjax.networks._second_time import SecondTime as SecondTime, with_second_time as with_second_time
from diffjax.networks._t5 import (
    T5_SIZES as T5_SIZES,
    T5Encoder as T5Encoder,
    init_t5 as init_t5,
    relative_buckets as relative_buckets,
    sized_t5 as sized_t5,
)
from diffjax.networks._text import Text as Text, pooled as pooled
from diffjax.networks._top_down import TopDown as TopDown
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
from diffjax.networks._with_text_encoder import with_text_encoder as with_text_encoder
