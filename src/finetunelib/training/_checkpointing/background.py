"""Writing a checkpoint in a thread while training continues."""

from __future__ import annotations

import threading
from pathlib import Path

from finetunelib.training._checkpointing.content import Content
from finetunelib.training._checkpointing.folder import write_checkpoint


class BackgroundWrite:
    """A checkpoint that a thread writes. The process does not end before it is written.

    Args:
        path: The folder of the checkpoint.
        content: What is written. It must not change meanwhile.
    """

    def __init__(self, path: Path, content: Content) -> None:
        self._path = path
        self._content = content
        self._written: Path | None = None
        self._error: BaseException | None = None
        # Not a daemon: the interpreter waits for it.
        self._thread = threading.Thread(target=self._write, name=f"checkpoint {path.name}")
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the checkpoint was written, or could not be."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the checkpoint was written, or could not be."""
        self._thread.join()

    def result(self) -> Path:
        """Wait until the checkpoint is written, and return its folder.

        Raises:
            PathNotWritableError: If it could not be written.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        return self._written or self._path

    def _write(self) -> None:
        try:
            self._written = write_checkpoint(self._path, self._content)
        except BaseException as error:  # noqa: BLE001 - raised where the result is needed
            self._error = error
