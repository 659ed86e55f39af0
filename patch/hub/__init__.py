"""The Hugging Face hub: access, and errors without tokens."""
