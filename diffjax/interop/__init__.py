"""Published weights <-> our parameters, without torch.

    config.json -----------> a Linen module (networks/), named as the network it equals ----> shapes
    *.safetensors ---------> tensors --- one mechanical rule of names and layouts, both ways (_keys) ---> params
    scheduler_config.json -> process, parameterisation, grid, method, thresholds

`from_pretrained` reads all three, `load_module` the first two, and `save_pretrained` writes them.
"""

from diffjax.interop._autoencoder import autoencoder_config as autoencoder_config
from diffjax.interop._classifier import read_classifier as read_classifier
from diffjax.interop._clock import OnSigma as OnSigma, OnSteps as OnSteps
from diffjax.interop._files import read_tensors as read_tensors, write_tensors as write_tensors
from diffjax.interop._inception import read_inception as read_inception
from diffjax.interop._keys import to_params as to_params, to_tensors as to_tensors
from diffjax.interop._known import module_from_config as module_from_config, parameter_shapes as parameter_shapes
from diffjax.interop._lowered import LoweredAtTheEnd as LoweredAtTheEnd
from diffjax.interop._pretrained import (
    Loaded as Loaded,
    Pretrained as Pretrained,
    denoiser_of as denoiser_of,
    from_pretrained as from_pretrained,
    load_module as load_module,
    save_pretrained as save_pretrained,
)
from diffjax.interop._scheduler import SCHEDULERS as SCHEDULERS, read_scheduler as read_scheduler
from diffjax.interop._scheduler_chain import Sampling as Sampling
from diffjax.interop._t5 import t5_config as t5_config
from diffjax.interop._tokenizer import (
    Vocabulary as Vocabulary,
    count_tokens as count_tokens,
    tokenize as tokenize,
    train_tokenizer as train_tokenizer,
    vocabulary_of as vocabulary_of,
)
