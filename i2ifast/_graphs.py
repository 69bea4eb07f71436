"""CUDA graphs: work on tensors of a shape launched once as a whole instead of kernel by kernel."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

KEPT = 8  # graphs, each of which keeps the memory of its work


class Graphs:
    """A function of a dict of CUDA tensors, captured once for all calls with the same names, shapes and types.

    The function must not wait for the device, nor may shapes in it depend on values: what cannot be captured runs as it
    is, with a warning. Random numbers are drawn anew in every call. Not for several threads.
    """

    def __init__(self, function: Callable[[dict[str, Tensor]], Tensor]) -> None:
        self.function = function
        self.captured: dict[tuple, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]] = {}
        self.capturable = True

    def __call__(self, tensors: dict[str, Tensor]) -> Tensor:
        if not self.capturable:
            return self.function(tensors)
        key = tuple((name, tensor.shape, tensor.dtype, tensor.stride()) for name, tensor in tensors.items())
        if key not in self.captured:
            try:
                self.captured[key] = self.capture(tensors)
            except RuntimeError as error:
                logging.getLogger(__name__).warning("runs without CUDA graphs, for this was not captured: %s", error)
                self.capturable = False
                return self.function(tensors)
            if len(self.captured) > KEPT:
                del self.captured[next(iter(self.captured))]
        graph, inputs, output = self.captured[key]
        for name, tensor in tensors.items():
            inputs[name].copy_(tensor)
        graph.replay()
        return output.clone()

    def capture(self, tensors: dict[str, Tensor]) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]:
        """The graph, the tensors that it reads and the one that it writes."""
        inputs = {name: tensor.clone() for name, tensor in tensors.items()}
        device = next(iter(inputs.values())).device
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # what is chosen, compiled or allocated once is not part of the graph
            for _ in range(2):
                self.function(inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.function(inputs)
        return graph, inputs, output
