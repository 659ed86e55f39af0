"""What is measured on a sparse model: perplexity and zero-shot accuracy."""
