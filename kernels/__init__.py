"""Device code that ships inside the package: Triton and AscendC kernels, one file per op."""
