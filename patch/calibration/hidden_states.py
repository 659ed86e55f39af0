"""Hidden states of a calibration set in a temporary file, so that only one batch is in memory."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import torch
from torch import Tensor

from patch.errors import InputError


class HiddenStates:
    """Hidden states that enter a block, batch by batch, in an unnamed temporary file.

    The file is in `TMPDIR`. It is not memory-mapped, because mapped pages would count as memory of the process.
    """

    def __init__(self) -> None:
        # Unbuffered: every read and write is a whole batch.
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`
        self._batches: list[tuple[int, torch.Size, torch.dtype]] = []

    def append(self, states: Tensor) -> None:
        """Append a batch, `[batch, seqlen, hidden]`."""
        offset = os.fstat(self._file.fileno()).st_size
        self._batches.append((offset, states.shape, states.dtype))
        self._write(offset, states)

    def read(self, index: int, device: torch.device) -> Tensor:
        """Return a batch on ``device``."""
        offset, shape, dtype = self._batches[index]
        self._file.seek(offset)
        data = np.fromfile(self._file, np.uint8, size := shape.numel() * dtype.itemsize)
        if len(data) < size:
            raise InputError(f"the temporary file of hidden states in {tempfile.gettempdir()} was cut short")
        return torch.from_numpy(data).view(dtype).reshape(shape).to(device)

    def write(self, index: int, states: Tensor) -> None:
        """Replace a batch by ``states`` of the same shape and dtype."""
        offset, shape, dtype = self._batches[index]
        assert (states.shape, states.dtype) == (shape, dtype), (states.shape, shape, states.dtype, dtype)
        self._write(offset, states)

    def _write(self, offset: int, states: Tensor) -> None:
        data = memoryview(states.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        try:
            while data:
                count = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[count:], offset + count
        except OSError as error:
            raise InputError(
                f"hidden states do not fit into {tempfile.gettempdir()} ({error.strerror}); "
                "set TMPDIR to a folder with more space"
            ) from None

    def __len__(self) -> int:
        return len(self._batches)

    def __enter__(self) -> HiddenStates:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
