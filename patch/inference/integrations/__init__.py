"""Support of packed models in other software: transformers and vLLM."""
