"""Find the layer that loses precision, the smallest failing model, a flaky build or command."""
