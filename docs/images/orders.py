"""Draws docs/images/orders.png: ``python docs/images/orders.py``."""

from pathlib import Path

from matplotlib.figure import Figure

from zigma_jax.plotting import plot_orders

figure = Figure(figsize=(12.8, 11.4), layout="constrained")
zigzag, hilbert, middle, video = figure.subfigures(4, 1, squeeze=False, height_ratios=(2.1, 2.1, 2.0, 5.2))[:, 0]
sweep, volume = middle.subfigures(1, 2, squeeze=False, width_ratios=(1, 3))[0]
plot_orders("zigzag8", (8, 8), figure=zigzag)
plot_orders("hilbert8", (8, 8), figure=hilbert)
plot_orders("sweep2", (8, 8), figure=sweep)
plot_orders("zigzag3d3", (4, 4, 4), figure=volume)
plot_orders("video_sst", (4, 4, 4), figure=video)
figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)
