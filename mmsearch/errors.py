"""The exceptions that mmsearch raises, each with the exit code that its command ends with.

MmsearchError                 1   something failed; the message is one sentence for the user
+-- UsageError                2   a wrong command line, study file or data set
|   +-- StudyFileError            the study file, its environment or overrides: names file, key and what is allowed
|   +-- DataError                 a data set: names file and row
|   +-- StudyMismatch             the stored study was begun with something else: names what
|   `-- BundleError               a retrained model that is missing, damaged or of no use here
+-- NoCompletedTrial          3   the search ended, or was asked for its best, without a completed trial
+-- StorageError              4   the storage is out of reach, of another version, or refuses the password
|   +-- NoStudy                   there is no such study in it yet
|   `-- StorageLost               it was there, and has been away for longer than storage_timeout
+-- DiskFull                  1   a file cannot be written: no space, or read-only; what is written stays whole
+-- Interrupted               130 or 143   a search goes on when it is run again, a retraining or a report begins anew
+-- SearchFailed              1   workers or trials failed again and again
+-- FetchError                1   a download failed: names the address; what came is kept unless it is wrong
`-- TrialFailed               1   one trial's training went wrong; the search goes on
    +-- LossNotFinite             its loss became infinite or not a number
    `-- OutOfMemory               the processor's or the GPU's memory is too small for it

BudgetExhausted                   not an error: the study has all the trials it was asked for
`-- GridExhausted                 each point of the grid has its trial
"""

from __future__ import annotations


class MmsearchError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 1


class UsageError(MmsearchError):
    """Something that the user gave cannot be used."""

    exit_code = 2


class StudyFileError(UsageError):
    """A study file, an environment variable or an override is wrong."""


class DataError(UsageError):
    """A data set cannot be read or does not hold together."""


class StudyMismatch(UsageError):
    """The study in the storage was begun with other data, space or settings."""


class NoCompletedTrial(MmsearchError):
    """There is no completed trial to take the best of."""

    exit_code = 3


class StorageError(MmsearchError):
    """The study's storage cannot be reached or used."""

    exit_code = 4


class NoStudy(StorageError):
    """The storage is there, or can be made, and has no such study."""


class StorageLost(StorageError):
    """The storage went away and did not come back in time."""


class DiskFull(MmsearchError):
    """A file cannot be written, since its disk is full or read-only."""


class Interrupted(MmsearchError):
    """What ran was stopped by a signal; `exit_code` is 128 plus its number, `kept` says what is left of it."""

    def __init__(
        self, signum: int, command: str = "the same command", kept: str = "every trial is finished or queued; go on"
    ) -> None:
        super().__init__(f"stopped; {kept} with: {command}")
        self.signum, self.exit_code = signum, 128 + signum


class SearchFailed(MmsearchError):
    """Workers died, or trials failed, again and again."""


class FetchError(MmsearchError):
    """A download failed, or brought something else than was announced."""


class BundleError(UsageError):
    """A bundle is incomplete, damaged, or predicts something else than when it was made."""


class TrialFailed(MmsearchError):
    """One trial cannot be finished; its message is the reason that the dashboard and the log show."""


class LossNotFinite(TrialFailed):
    """The loss became infinite or not a number."""


class OutOfMemory(TrialFailed):
    """The model, or its batches, do not fit into memory."""


class BudgetExhausted(Exception):
    """The study already has, finished or under way, all the trials of its total."""


class GridExhausted(BudgetExhausted):
    """Each point of the grid has its trial; one that failed is not tried again."""
