"""``python -m streamdrop``."""

import sys

from streamdrop.cli import main

sys.exit(main())
