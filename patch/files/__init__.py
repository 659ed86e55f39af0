"""File access: atomic writes, strict JSON and YAML, checksummed safetensors, arrays of untrusted archives."""
