"""The data sets: builders of TFDS that write ArrayRecord."""
