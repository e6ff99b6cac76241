"""Other formats: stock BERT, the original's TensorFlow checkpoints, ONNX, OpenVINO, GGUF, CTranslate2 and more.

stock converts both ways; export writes every format of the table in formats, each from a file of its own.
"""
