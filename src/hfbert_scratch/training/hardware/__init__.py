"""Fit training to the machine: memory, spinning threads, recorded CUDA steps, its peak rate."""
