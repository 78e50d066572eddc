"""Change ONNX models: sanitize, extract, insert, prune, strip and restore weights."""
