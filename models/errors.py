"""
Every error that ``models`` raises on purpose. Nothing here knows of HTTP; ``app.errors`` maps types to statuses.

ModelError
|- DataError                    the input data or a prepared dataset cannot be used
|  |- InputFormatError          an input file cannot be read as the format that it claims
|  |- InputTooLargeError        an input expands to more bytes than it may
|  |- ImplausibleInputError     an input that can be read, but is not what it was taken for
|  |- BadRowsError              more bad rows than the stated share
|  |- EmptyDatasetError         nothing survives the thresholds; names the one that emptied it
|  |- DiskTooSmallError         the disk has too little room for what a preparation writes beside its output
|  |- OutputExistsError         the output folder holds something that must not be replaced
|  `- DatasetFormatError        a prepared dataset folder is missing a file, damaged, or of another version
|- VocabularyError
|  |- UnknownDomainError        a domain that the bundle or dataset does not know
|  `- UnknownItemError          an item that its domain does not know; carries the position in its sequence
|- ConfigurationError           options or a configuration file that ask for what cannot be
|- OwnRecommenderError          a team's recommender, or the scores that it gave, cannot be judged
|- EngineError                  what spreads work over processes cannot start, or work fails wherever it is done
|- TrainingError
|  `- ResumeMismatchError       a run folder that belongs to another dataset or configuration
`- BundleError                  a checkpoint bundle cannot be loaded; names the file and the reason
   |- BundleMissingFileError
   |- BundleCorruptError        a hash, a size or a tensor file is wrong
   |- BundleVersionError        written by a newer format than this code reads
   `- BundleMismatchError       its parts do not belong together (shapes, domains, configuration)
"""

from __future__ import annotations


class ModelError(Exception):
    """The root: everything that ``models`` raises on purpose."""


class DataError(ModelError):
    """The input data or a prepared dataset cannot be used."""


class InputFormatError(DataError):
    """An input file cannot be read as the format that it claims to be."""


class InputTooLargeError(DataError):
    """An input expands to more bytes than it may."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"{what}; the limit is {limit}")
        self.what = what
        self.limit = limit


class ImplausibleInputError(DataError):
    """An input can be read, but is not what it was taken for; the message says what it looks like and what to do."""


class BadRowsError(DataError):
    """More rows are bad than the stated share allows."""


class EmptyDatasetError(DataError):
    """Nothing survives the thresholds; the message names the threshold that removed the last rows."""


class DiskTooSmallError(DataError):
    """The disk has too little room for what a preparation writes beside its output."""


class OutputExistsError(DataError):
    """The output folder holds something that must not be replaced."""


class DatasetFormatError(DataError):
    """A prepared dataset folder is missing a file, damaged, or of another format version."""


class VocabularyError(ModelError):
    """A domain or an item is not in the vocabulary."""


class UnknownDomainError(VocabularyError):
    """The domain is not one of the vocabulary's."""

    def __init__(self, domain: str, known: tuple[str, ...]) -> None:
        super().__init__(f"unknown domain {domain!r}; known domains: {', '.join(known)}")
        self.domain = domain
        self.known = known


class UnknownItemError(VocabularyError):
    """The item is not in its domain's vocabulary."""

    def __init__(self, item_id: str, domain: str, position: int | None = None) -> None:
        where = "" if position is None else f" at position {position}"
        super().__init__(f"unknown item {item_id!r} of domain {domain!r}{where}")
        self.item_id = item_id
        self.domain = domain
        self.position = position


class ConfigurationError(ModelError):
    """Options or a configuration file ask for what cannot be; the message names the option or key."""


class OwnRecommenderError(ModelError):
    """A team's own recommender fails, or gives no scores that can be judged; the message names command or file."""


class EngineError(ModelError):
    """What spreads the work over processes cannot start, or a piece of the work fails wherever it is done."""


class TrainingError(ModelError):
    """Training cannot go on."""


class ResumeMismatchError(TrainingError):
    """The run folder belongs to another dataset or configuration."""


class BundleError(ModelError):
    """A checkpoint bundle cannot be loaded; the message names the file and the reason."""


class BundleMissingFileError(BundleError):
    """A file that the manifest lists, or the manifest itself, is not there."""


class BundleCorruptError(BundleError):
    """A file's hash or size differs from the manifest, or it cannot be parsed."""


class BundleVersionError(BundleError):
    """The bundle was written in a format newer than this code reads."""


class BundleMismatchError(BundleError):
    """The bundle's parts do not belong together: shapes, domains or configuration disagree."""
