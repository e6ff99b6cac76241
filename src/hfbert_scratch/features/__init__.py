"""Feature-based BERT (paper, section 5.3): vectors of texts, files of them, and a tagger trained on them."""

from .encoder import POOLINGS, Features, encode, load_encoder


__all__ = ["POOLINGS", "Features", "encode", "load_encoder"]
