"""One module a stage: read inputs, call the library, write outputs. Run by `python -m patch.pipeline.stages STAGE`."""
