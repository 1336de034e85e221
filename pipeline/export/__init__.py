"""Trained models as ONNX bundles: graphs, precisions that cost nothing that matters, parity with PyTorch."""
