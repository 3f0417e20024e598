"""`python -m latentflows`, also under `torchrun`: the command line."""

from latentflows.cli import main

raise SystemExit(main())
