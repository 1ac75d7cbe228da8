"""python -m reid: the command `reid`."""

from __future__ import annotations

import sys

from reid import cli

sys.exit(cli.main())
