"""Kernels for CPUs, in C++: `library` compiles them where they are first used."""
