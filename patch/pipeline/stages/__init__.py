"""Stages of the pipeline: `python -m patch.pipeline.stages STAGE`.

A stage reads its inputs, calls the library and writes its outputs. `_run.STAGES` lists all stages.
"""
