"""Attention by kernels that never write the scores to memory, and the choice between them and the plain formula."""
