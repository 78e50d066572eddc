"""Join saved inputs and outputs into files that --load-inputs and --load-outputs take."""
