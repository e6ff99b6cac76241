"""Turn raw text into tokens: read files, split sentences, train and check WordPiece tokenizers, encode."""
