"""The paper's ablation, small: the same model trained along different scan orders. See `__main__.py`."""
