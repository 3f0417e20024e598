"""`python -m latentflows`, also under `torchrun`: the command line."""

import os

from latentflows.cli import main

code = main()
if os.environ.get("WORLD_SIZE", "1") != "1":
    from latentflows.training.parallel import leave

    leave(code)
raise SystemExit(code)
