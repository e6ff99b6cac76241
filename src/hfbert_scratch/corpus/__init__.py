"""The pretraining corpus: shards of tokenized documents, segment pairs drawn from them, masks."""
