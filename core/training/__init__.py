"""Training: the loop, sampling, augmentation, averaging, sweeps."""
