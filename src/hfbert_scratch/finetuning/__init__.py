"""Fine-tune a checkpoint on a task: arguments with the task's defaults, batches, and the run with its results."""

from .arguments import FinetuningArguments
from .batches import FinetuningBatches
from .run import estimate_fine_tuning, fine_tune, open_task


__all__ = ["FinetuningArguments", "FinetuningBatches", "estimate_fine_tuning", "fine_tune", "open_task"]
