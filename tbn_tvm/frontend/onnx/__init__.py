"""ONNX to the graph IR: reading untrusted files, finding tiled weights, importing."""
