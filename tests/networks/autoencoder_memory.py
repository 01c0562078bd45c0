"""What decoding and encoding large pictures with Stable Diffusion's autoencoder costs in memory.

    python -m tests.networks.autoencoder_memory [--run] [--sides=1024,2048] [--dtypes=float32]

prints the compiled programs' own account (temporaries beside weights, input and output), and with --run, in a process
for each size, the peak of the process and how far the strips' picture is from that computed in one piece. Weights are
random, of the published network's shapes.
"""
