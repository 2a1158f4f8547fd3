"""Training: from a loss to a trained state, by pure steps, over devices and processes, interruptible anywhere.

    loss_fn, tx --> Objective --make_train_step--> step --(jit | fsdp | tensor | pmap)_layout--> Layout --+
                                                                                                          |
    network --init_state--> TrainState: step, params, ema, opt_state, key --------------------------------+--> train
                                 ^                                                                        |     |
    data: source(seed, step, size) -----------------------------------------------------------------------+     |
                                 |                                                                              |
                                 +-- restore -- Checkpoints <-- save, every so often -- TrainState <------------+
                                                                                         |                      |
                                 .safetensors <-- save_weights -- averaged_params <------+                      |
                                                                  metrics.jsonl, bar, TensorBoard, watchers <---+

Several processes: `initialize` before JAX starts; then every process calls the same functions, and process 0 writes.
`Family` is what a kind of model offers: objectives, samples, likelihood. The pieces of checkpoints are in
`diffjax.training.checkpoint`.
"""

from diffjax.training._ema import (
    make_ema as make_ema,
    make_power_ema as make_power_ema,
    power_exponent as power_exponent,
    reconstruction_weights as reconstruction_weights,
    weighted_sum as weighted_sum,
)
from diffjax.training._family import Family as Family, check_options as check_options
from diffjax.training._hosts import (
    Failed as Failed,
    Refused as Refused,
    check_same as check_same,
    gather_rows as gather_rows,
    gather_to_host as gather_to_host,
    is_input_error as is_input_error,
    is_main as is_main,
    local_copy as local_copy,
    run_on_main as run_on_main,
    sync_errors as sync_errors,
)
from diffjax.training._layouts import (
    Layout as Layout,
    fsdp_layout as fsdp_layout,
    jit_layout as jit_layout,
    shard_batch as shard_batch,
    tensor_layout as tensor_layout,
)
from diffjax.training._log import truncate_log as truncate_log
from diffjax.training._loop import train as train
from diffjax.training._mesh import data_mesh as data_mesh, make_mesh as make_mesh
from diffjax.training._monitor import tensorboard as tensorboard
from diffjax.training._objective import Context as Context, Objective as Objective, projected as projected
from diffjax.training._pmap import (
    pmap_layout as pmap_layout,
    replicate as replicate,
    split_batch as split_batch,
    unreplicate as unreplicate,
)
from diffjax.training._rendezvous import (
    HEARTBEAT as HEARTBEAT,
    Unreachable as Unreachable,
    abort as abort,
    initialize as initialize,
)
from diffjax.training._rules import TENSOR_RULES as TENSOR_RULES
from diffjax.training._saving import (
    RESCUE as RESCUE,
    NotFinite as NotFinite,
    check_parameters as check_parameters,
)
from diffjax.training._signals import Stopped as Stopped, handle_signals as handle_signals
from diffjax.training._snapshots import Snapshots as Snapshots
from diffjax.training._state import (
    TrainState as TrainState,
    averaged_params as averaged_params,
    init_state as init_state,
    state_from_params as state_from_params,
)
from diffjax.training._step import make_train_step as make_train_step
from diffjax.training.checkpoint._export import load_weights as load_weights, save_weights as save_weights
from diffjax.training.checkpoint._metadata import Damaged as Damaged
from diffjax.training.checkpoint._store import Checkpoints as Checkpoints
