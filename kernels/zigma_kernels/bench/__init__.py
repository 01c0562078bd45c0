"""Times of the ops, and how far they are from what the device allows: `python -m zigma_kernels.bench`."""
