"""The pretraining corpus: build shards of tokenized documents, sample segment pairs from them, mask them."""
