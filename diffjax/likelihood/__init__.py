"""What a denoiser says of data: densities in nats, bits a dimension, lower bounds, and latents.

x0   --> log_likelihood(Exact | Hutchinson | HutchPlusPlus) --> nats, standard error, nfe        the flow's
     --> evaluate_continuous_elbo | evaluate_discrete_elbo  --> nats, below the reverse SDE's
data --> dequantise --> either of these --> bits_per_dim
x0   --> flow_encode | invert --> latent --> slerp --> flow_decode | sample --> x0
"""

from diffjax.likelihood._bits import (
    BitsPerDim as BitsPerDim,
    average_bound as average_bound,
    bits_per_dim as bits_per_dim,
    importance_weighted_bound as importance_weighted_bound,
)
from diffjax.likelihood._dequantisation import (
    Quantisation as Quantisation,
    UniformDequantisation as UniformDequantisation,
    VariationalDequantisation as VariationalDequantisation,
    apply_dequantiser as apply_dequantiser,
    dequantisation_loss as dequantisation_loss,
    dequantise as dequantise,
    init_dequantiser as init_dequantiser,
)
from diffjax.likelihood._divergence import Exact as Exact, HutchPlusPlus as HutchPlusPlus
from diffjax.likelihood._elbo import (
    Elbo as Elbo,
    evaluate_continuous_elbo as evaluate_continuous_elbo,
    evaluate_discrete_elbo as evaluate_discrete_elbo,
)
from diffjax.likelihood._flow import (
    FLOAT32_LOGSNR as FLOAT32_LOGSNR,
    LogLikelihood as LogLikelihood,
    adaptive as adaptive,
    worst_sample as worst_sample,
)
from diffjax.likelihood._latents import (
    Encoding as Encoding,
    flow_decode as flow_decode,
    flow_encode as flow_encode,
    invert as invert,
    slerp as slerp,
)
