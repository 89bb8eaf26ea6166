"""`python -m accerl.cli`."""

import sys

from accerl.cli import main

sys.exit(main())
