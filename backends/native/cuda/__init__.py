"""The plan on an NVIDIA GPU: the same layers as on the CPU, run from one arena per shape."""
