"""Every exception qskd raises on purpose; each is also a built-in, so ordinary handlers work.

QskdError
├── DataError (ValueError)            an annotation file, image or data folder is not usable
├── UnsupportedFamily (ValueError)    a model type no adapter reads
├── CheckpointError (ValueError)      a model folder lacks weights or holds another run's state
├── LabelMapError (ValueError)        teacher, student and data share no class name
├── UnsupportedNeed (ValueError)      a loss term needs what an adapter does not provide
├── ConfigError (ValueError)          options that contradict each other or name nothing
├── PreflightError (RuntimeError)     a check before the first epoch failed
├── NonFiniteLoss (ArithmeticError)   training produced NaN or infinity; the batch was saved
├── OutOfMemory (RuntimeError)        a step did not fit into the device's memory
└── SavingError (OSError)             a checkpoint, model or log could not be written

Interrupted (KeyboardInterrupt)       a signal ended the run; no QskdError, since nothing is wrong

A message says what was given, what was expected and what to do.
"""


class QskdError(Exception):
    """Base of every error raised on purpose by qskd."""


class DataError(QskdError, ValueError):
    """An annotation file, an image or a data folder cannot be used."""


class UnsupportedFamily(QskdError, ValueError):
    """No adapter reads this model type."""


class CheckpointError(QskdError, ValueError):
    """A model or run folder lacks what is needed, or belongs to another run."""


class LabelMapError(QskdError, ValueError):
    """Two vocabularies have no class name in common."""


class UnsupportedNeed(QskdError, ValueError):
    """A loss term needs something that the model's adapter does not provide."""


class ConfigError(QskdError, ValueError):
    """Options contradict each other, or name something that does not exist."""


class PreflightError(QskdError, RuntimeError):
    """A check made before the first epoch failed."""


class NonFiniteLoss(QskdError, ArithmeticError):
    """The training loss became NaN or infinite."""


class OutOfMemory(QskdError, RuntimeError):
    """A step needs more memory than the device has."""


class SavingError(QskdError, OSError):
    """Something of a run could not be written: the disk is full, or may not be written to."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or the signal of a scheduler, ended the run.

    Args:
        message: what is kept, and how to go on.
        signal: its number; the process leaves with 128 + this.
    """

    def __init__(self, message: str, signal: int = 2) -> None:
        super().__init__(message)
        self.signal = signal
