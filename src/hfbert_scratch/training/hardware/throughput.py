"""FLOPs per token, peak FLOP/s of devices, and durations: the arithmetic behind tokens per second and MFU."""

import time
from typing import Any

import torch


# Dense bf16 tensor-core peaks in FLOP/s, from the makers' datasheets; the first name within the device's name counts.
DATASHEET_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def model_flops_per_token(config: Any, mean_length: float, predicted_share: float) -> float:
    """Return the useful FLOPs of one real token, forward and backward, without recomputation.

    6·(L·(4h² + 2h·f) + p·(h² + V·h)) + 12·L·h·s̄: two FLOPs a multiply-add, the backward pass twice the forward; f the
    intermediate size, p the share of tokens predicted, s̄ = Σs²/Σs over the sequence lengths. Padding counts nothing.
    The last layer counts whole, though unpadded training computes it for the vectors that are read alone.

    Args:
        config: an encoder's, with the sizes h, L, f and V.
        mean_length: s̄, in tokens.
        predicted_share: p, from 0 to 1; 0 for a model without a vocabulary head.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    block = 4 * hidden**2 + 2 * hidden * config.intermediate_size
    head = predicted_share * (hidden**2 + config.vocab_size * hidden)
    return 6 * (layers * block + head) + 12 * layers * hidden * mean_length


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return a device's peak FLOP/s.

    The datasheet's counts for a known GPU in 16 bits, else that of matrix products timed now.

    Args:
        device: the device.
        dtype: the precision of the products.

    Returns:
        FLOP/s, and the source of the figure.
    """
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        for known, peak in DATASHEET_PEAKS.items():
            if known in name:
                return peak, f"datasheet of {known}"
    size = 1024 if device.type == "cpu" else 4096
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(left, right)
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best, f"best of 8 {str(dtype).removeprefix('torch.')} products of {size}³ on this device"


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def clock(seconds: float) -> str:
    """12:34 or 1:02:03."""
    minutes, seconds = divmod(int(max(0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
