"""``python -m seekr_cl`` is the command ``seekr``."""

import sys

from seekr_cl.cli.main import main

sys.exit(main())
