"""onnx2pytorch, imported and called without what it costs and nobody here needs.

It imports torchvision, and with it torch's compiler, for five operators that are none of
`adap.models.graphs.OPERATORS` (of object detectors, and one that decodes images): two seconds and
150 MiB of the process that opens an upload. torch draws random weights for each layer that it
makes, which the file's replace; and the library copies those twice.
"""

import importlib
import sys
from collections import defaultdict
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_OF_TORCHVISION = {
    "torchvision": (),
    "torchvision.io": ("ImageReadMode", "decode_image"),
    "torchvision.ops": ("deform_conv2d", "roi_align", "roi_pool"),
}


def convert(model: Any, tensors: Iterable[Tensor]) -> Any:
    """The library's module of torch operations for a ModelProto; raises whatever it raises.

    tensors: those of the model, which the module is given instead of copies of their numbers.
    """
    library = _library()
    with _Sparing(tensors):
        return library.ConvertModel(model)


def _library() -> ModuleType:
    if "onnx2pytorch" in sys.modules or "torchvision" in sys.modules:
        return importlib.import_module("onnx2pytorch")
    sys.modules.update({name: _stand_in(name) for name in _OF_TORCHVISION})
    try:
        return importlib.import_module("onnx2pytorch")
    finally:
        for name in _OF_TORCHVISION:
            del sys.modules[name]


def _stand_in(name: str) -> ModuleType:
    module = ModuleType(name)
    for function in _OF_TORCHVISION[name]:
        setattr(module, function, None)
    return module


class _Sparing(TorchFunctionMode):
    """Leaves new weights as they lie in memory, and makes none that are there already."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._known: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for tensor in tensors:
            self._known[tuple(tensor.shape)].append(tensor)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.uniform_:
            return args[0]
        if func is torch.tensor and isinstance(args[0], np.ndarray) and not kwargs:
            numbers = torch.from_numpy(args[0])
            for tensor in self._known.get(tuple(numbers.shape), ()):
                if tensor.dtype == numbers.dtype and torch.equal(tensor, numbers):
                    return tensor
        return func(*args, **(kwargs or {}))
