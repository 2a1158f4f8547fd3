"""`python -m diffjax.cli`: the command line without an installed script."""

import sys

from diffjax.cli import main

sys.exit(main())
