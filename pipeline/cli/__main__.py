"""`python -m pipeline.cli`: the command by its module, for programs that start it as another process."""

import sys

from pipeline.cli import main

sys.exit(main())
