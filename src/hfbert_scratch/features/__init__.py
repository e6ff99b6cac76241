"""Feature-based BERT (paper, section 5.3): encode texts, write the vectors to files, train a tagger on them."""

from .encoder import POOLINGS, Features, encode, load_encoder


__all__ = ["POOLINGS", "Features", "encode", "load_encoder"]
