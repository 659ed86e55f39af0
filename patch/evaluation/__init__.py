"""Evaluation of sparse models: perplexity and zero-shot accuracy."""
