"""Stages of the pipeline, one module each: `python -m patch.pipeline.stages STAGE`.

A stage reads its inputs, calls the library and writes its outputs.
"""
