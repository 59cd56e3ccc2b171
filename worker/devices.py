"""Whether it is the device that failed and not the work: then another worker is to do it.

A GPU that has fallen off its bus, or whose driver is gone, fails every job in no time, so a worker
that went on would soon have failed all that wait. It gives its job back and ends; whoever started
it starts another, and one that must have a GPU (`ADAP_DEVICE=cuda`) tries it before it takes a job.
"""

import re
import sys

CODE = "device_error"  # of what a child answers, and of a job that is given up for it

# errors of the driver and of libraries on the device, for which torch has no class of their own
_OF_A_DEVICE = re.compile(r"CUDA (error|driver)|cuDNN error|No CUDA GPUs|no NVIDIA driver", re.I)
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|bad_alloc")  # of the CPU
_OF_THE_WORK = re.compile(r"device-side assert", re.I)


def is_lost(error: Exception) -> bool:
    """Whether an error of torch says that the device cannot be used."""
    torch = sys.modules.get("torch")  # what did not load it has no device
    if torch is None or not isinstance(error, RuntimeError):
        return False
    if isinstance(error, torch.OutOfMemoryError) or _OF_THE_WORK.search(str(error)):
        return False
    return isinstance(error, torch.AcceleratorError) or bool(_OF_A_DEVICE.search(str(error)))


def is_out_of_memory(error: Exception) -> bool:
    """Whether the memory of the device, or of the process, was too small for the work."""
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (
        torch is not None
        and (
            isinstance(error, torch.OutOfMemoryError)
            or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))
        )
    )
