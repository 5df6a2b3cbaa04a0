"""The network: one decoder, described by a `ModelConfig`, with its cache, scalar heads and Hugging Face folders."""
