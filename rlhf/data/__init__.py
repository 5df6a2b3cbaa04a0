"""Text in, token batches out: sources, record layouts, chat templates, tokenizers, packing and loaders."""
