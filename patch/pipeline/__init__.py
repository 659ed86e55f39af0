"""The pipeline: everything that only the workflow needs. The library never imports it."""
