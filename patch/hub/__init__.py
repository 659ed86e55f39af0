"""Access to the Hugging Face hub, and error messages without tokens."""
