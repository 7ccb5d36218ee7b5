"""One file per op: its contract, plain-PyTorch reference, autograd, and public function."""
