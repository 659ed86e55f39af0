"""All measurements of one NVIDIA GPU, in one command: `make gpu`, or `python -m benchmarks.gpu`.

The steps, in order: the tests that need a GPU, packed layers, generation, learning steps, and the pretrained model.
Each measurement is written to `gpu-CARD.json` as soon as it is finished, so that a run that is cut off resumes. The
section on GPUs of `docs/performance.md` is made from these files.
"""
