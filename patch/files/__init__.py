"""Files: atomic writes, strict JSON and YAML, safetensors with checksums, arrays of untrusted archives."""
