"""Variational autoencoders: bounds, likelihoods of decoders, hierarchies, and posterior collapse in closed form.

x0 --> top-down pass, level by level --> y --> likelihood --> log p(x0 | z)      VAE | HierarchicalVAE | DiffusionChain
             |                                                     |
             +--> draw(prior, posterior) --> z, rates              |
                                               |                   |
                                               +-> negative_elbo, iwae_bound      train and measure
generate, decode     the same pass with latents from the priors, or given
autoencoder_loss, critic_loss     latent diffusion's autoencoder, which is no bound
optimal_linear_vae, LinearHierarchy     oracles: what training must reach
"""

from diffjax.vae._autoencoder import (
    autoencoder_loss as autoencoder_loss,
    critic_loss as critic_loss,
    reconstruct as reconstruct,
    with_unit_latents as with_unit_latents,
)
from diffjax.vae._diagnose import (
    active_units as active_units,
    aggregate_divergence as aggregate_divergence,
    aggregate_log_prob as aggregate_log_prob,
    aggregate_moments as aggregate_moments,
    mutual_information as mutual_information,
    rate_by_latent as rate_by_latent,
    rate_by_level as rate_by_level,
)
from diffjax.vae._elbo import (
    AutoregressivePrior as AutoregressivePrior,
    cyclic_warm_up as cyclic_warm_up,
    iwae_bound as iwae_bound,
    least_rate as least_rate,
    linear_warm_up as linear_warm_up,
    negative_elbo as negative_elbo,
)
from diffjax.vae._gaussian import (
    AbstractPrior as AbstractPrior,
    DiagonalGaussian as DiagonalGaussian,
    StandardNormal as StandardNormal,
    as_gaussian as as_gaussian,
    residual_gaussian as residual_gaussian,
)
from diffjax.vae._hierarchical import (
    DiffusionChain as DiffusionChain,
    HierarchicalVAE as HierarchicalVAE,
    LinearHierarchy as LinearHierarchy,
    LinearPosterior as LinearPosterior,
)
from diffjax.vae._likelihoods import (
    AbstractLikelihood as AbstractLikelihood,
    Autoregressive as Autoregressive,
    Bernoulli as Bernoulli,
    DiscretisedLogistic as DiscretisedLogistic,
    GaussianLikelihood as GaussianLikelihood,
)
from diffjax.vae._linear import (
    LinearVAE as LinearVAE,
    best_encoder as best_encoder,
    optimal_linear_vae as optimal_linear_vae,
    rates_at_optimum as rates_at_optimum,
)
from diffjax.vae._model import (
    VAE as VAE,
    AbstractVAE as AbstractVAE,
    Inference as Inference,
    Level as Level,
    decode as decode,
    generate as generate,
    infer as infer,
    infer_at as infer_at,
)
