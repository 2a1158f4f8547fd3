"""Networks: what learns. Only this package knows of Flax.

    from_linen(module)     \\
    from_nnx(build)         >--->  Network(init, apply)  --->  parameters are an ordinary tree, apply a pure function
    from_equinox(build)    /

`MLP` and `UNet` are Linen modules `(x, c_noise, cond) -> y`; `from_linen` makes a network of them. Anything else that
can be written as two pure functions is a network as well: `Network(init, apply)`.
"""

from diffjax.networks._adapters import from_equinox as from_equinox, from_linen as from_linen, from_nnx as from_nnx
from diffjax.networks._mlp import MLP as MLP
from diffjax.networks._text import Text as Text
from diffjax.networks._unet import UNet as UNet
