"""Raw text to tokens: readers of files, sentence splitting, WordPiece tokenizers."""
