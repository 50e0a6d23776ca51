"""Published weights by name: where they come from, under what licence, with which digest, and where they lie here."""

from streamdrop.weights.download import get
from streamdrop.weights.folder import add, listing, resolve, weights_folder
from streamdrop.weights.registry import BUILT_IN, Entry, WeightsFile

__all__ = ["BUILT_IN", "Entry", "WeightsFile", "add", "get", "listing", "resolve", "weights_folder"]
