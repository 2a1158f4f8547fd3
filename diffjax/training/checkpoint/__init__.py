"""Checkpoints: states that survive a crash, and are read back bitwise or not at all.

    state --save--> folder/120/state, about, digests --rename--> listed, newest preserved --+
      ^              one writer: folder/lock                                                |
      |                                                                                     |
      +-- equal digests <-- arrays onto the devices of `like` <-- same tree? <-- metadata <-+
               |
               +-- damaged: folder/aside, and the step before is read

    params --save_weights--> FILE.safetensors --load_weights--> params

`Checkpoints`, `Damaged`, `save_weights` and `load_weights` are in `diffjax.training`; here are the pieces that they are
made of.
"""

from diffjax.training.checkpoint._digest import digest_part as digest_part, digest_parts as digest_parts
from diffjax.training.checkpoint._files import check_utf8 as check_utf8, write_durably as write_durably
from diffjax.training.checkpoint._lock import LOCK as LOCK, FolderLock as FolderLock
from diffjax.training.checkpoint._logs import quiet_orbax_logs as quiet_orbax_logs
from diffjax.training.checkpoint._metadata import FORMAT as FORMAT
