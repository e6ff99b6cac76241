"""The model: three files that travel with checkpoints, and the kernels and loaders that stay here.

configuration_hfbert, modeling_hfbert and kernels_hfbert are copied beside every saved checkpoint; they import only
each other. Everything else in this folder makes the model faster or opens it.
"""
