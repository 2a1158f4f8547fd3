"""From a loss to a trained state: pure steps, laid out over devices, and a loop that can be cut anywhere.

init_state --> TrainState --+
                            v
loss_fn --make_train_step--> step --jit_layout | pmap_layout--> Layout --train--> TrainState
                                                                  |  ^
                                                metrics.jsonl <---+  +--- Checkpoints
"""

from diffjax.training._checkpoint import Checkpoints as Checkpoints
from diffjax.training._ema import make_ema as make_ema
from diffjax.training._loop import NotFinite as NotFinite
from diffjax.training._loop import Stopped as Stopped
from diffjax.training._loop import train as train
from diffjax.training._sharding import Layout as Layout
from diffjax.training._sharding import data_mesh as data_mesh
from diffjax.training._sharding import jit_layout as jit_layout
from diffjax.training._sharding import pmap_layout as pmap_layout
from diffjax.training._sharding import replicate as replicate
from diffjax.training._sharding import shard_batch as shard_batch
from diffjax.training._sharding import split_batch as split_batch
from diffjax.training._sharding import unreplicate as unreplicate
from diffjax.training._state import TrainState as TrainState
from diffjax.training._state import init_state as init_state
from diffjax.training._state import state_from_params as state_from_params
from diffjax.training._step import make_train_step as make_train_step
