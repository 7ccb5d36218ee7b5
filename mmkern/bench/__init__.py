"""The harness behind ``mmkern bench``: workloads, paired timing, accuracy, report."""
