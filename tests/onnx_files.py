"""A small restorer as an ONNX file, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_onnx(
    path: Path, side: int | str = 64, half: bool = False, shape: tuple[Any, ...] | None = None, **more: Any
) -> Path:
    """A network that adds 0.25 to every number of a picture (1, 3, side, side).

    side: a text leaves it open. half: in float16. shape: of the picture, in place of that. more: to `onnx.save`.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    shape = shape or (1, 3, side, side)
    quarter = numpy_helper.from_array(np.full((1, 1, 1, 1024), 0.25, np.float16 if half else np.float32), "quarter")
    nodes = [
        helper.make_node("ReduceMean", ["quarter"], ["one"], axes=[3], keepdims=1),
        helper.make_node("Add", ["input", "one"], ["output"]),
    ]
    picture = [helper.make_tensor_value_info(name, kind, shape) for name in ("input", "output")]
    graph = helper.make_graph(nodes, "restorer", picture[:1], picture[1:], [quarter])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path), **more)
    return path
