"""Other formats: stock BERT and the original's TensorFlow checkpoints, ONNX, GGUF, CTranslate2 and others."""
