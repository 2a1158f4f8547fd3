"""From a loss to a trained state: pure steps, laid out over devices, and a loop that can be cut anywhere.

init_state --> TrainState --+
                            v
loss_fn --make_train_step--> step --(jit | fsdp | tensor | pmap)_layout--> Layout --train--> TrainState
                                                                                      |  ^
                                                                    metrics.jsonl <---+  +--- Checkpoints
"""

from diffjax.training._about import Damaged as Damaged
from diffjax.training._checkpoint import Checkpoints as Checkpoints
from diffjax.training._distributed import (
    HEARTBEAT as HEARTBEAT,
    Failed as Failed,
    Refused as Refused,
    Unreachable as Unreachable,
    agree as agree,
    agree_on_main as agree_on_main,
    check_same as check_same,
    fetch as fetch,
    gather_rows as gather_rows,
    is_bad_input as is_bad_input,
    is_main as is_main,
    join as join,
    leave as leave,
    local_copy as local_copy,
)
from diffjax.training._durable import write_durably as write_durably
from diffjax.training._ema import make_ema as make_ema
from diffjax.training._export import load_weights as load_weights, save_weights as save_weights
from diffjax.training._finite import NotFinite as NotFinite
from diffjax.training._loop import train as train
from diffjax.training._mesh import data_mesh as data_mesh, make_mesh as make_mesh
from diffjax.training._pmap import (
    pmap_layout as pmap_layout,
    replicate as replicate,
    split_batch as split_batch,
    unreplicate as unreplicate,
)
from diffjax.training._power_ema import (
    combine as combine,
    make_emas as make_emas,
    make_power_ema as make_power_ema,
    power_exponent as power_exponent,
    reconstruction_weights as reconstruction_weights,
)
from diffjax.training._projected import projected as projected
from diffjax.training._rules import TENSOR_RULES as TENSOR_RULES
from diffjax.training._saves import RESCUE as RESCUE
from diffjax.training._sharding import (
    Layout as Layout,
    fsdp_layout as fsdp_layout,
    jit_layout as jit_layout,
    shard_batch as shard_batch,
    tensor_layout as tensor_layout,
)
from diffjax.training._signals import Stopped as Stopped
from diffjax.training._snapshots import Snapshots as Snapshots
from diffjax.training._state import (
    TrainState as TrainState,
    init_state as init_state,
    state_from_params as state_from_params,
)
from diffjax.training._step import make_train_step as make_train_step
from diffjax.training._watch import tensorboard as tensorboard
