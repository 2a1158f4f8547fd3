"""`python -m diffjax`, as `diffjax`."""

from diffjax.cli import main

raise SystemExit(main())
