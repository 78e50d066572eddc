"""CUDA kernels of the native engine: source templates, their generator, compiler and launcher.

Nothing here imports CuPy or needs a GPU until `driver` opens a device: sources are generated and
compiled by NVRTC anywhere.
"""
