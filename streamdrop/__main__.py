"""``python -m streamdrop``."""

from streamdrop.cli import program

program()
