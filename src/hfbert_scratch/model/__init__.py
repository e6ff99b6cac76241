"""The model: five files that travel with checkpoints, and the kernels and loaders that stay here.

configuration_hfbert, checks_hfbert, layout_hfbert, kernels_hfbert and modeling_hfbert are copied beside every saved
checkpoint; each imports only those before it. Everything else in this folder makes the model faster or opens it.
"""
