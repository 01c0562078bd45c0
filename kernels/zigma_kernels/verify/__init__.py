"""Everything that is claimed of the kernels, shown on the device at hand: `python -m zigma_kernels.verify`."""
