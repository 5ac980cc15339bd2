"""The one hierarchy of errors that Fairlead raises for its users.

    FairleadError (ValueError)
      ConfigError            a setting is unknown, out of range or contradicts another
      DataError              a record of a data set is malformed (names file, line, field)
      SpecError              a spec is malformed or contradicts itself (names file and line)
      ModelError             a model or tokenizer is missing, broken or of an unknown family
        SiteError            a site does not exist in this model
      OrganismError          a model organism is missing or incomplete
      DictionaryError        a dictionary is broken or was made for another model or site
        CatalogueError       a catalogue of concepts is broken, or of another model or dictionary
      RunError               a run folder is locked, incomplete or cannot be written
      TrainingError          training cannot go on (loss is not finite, no trainable token, ...)
      JudgeError             a judge gave no usable decision
      LLMError               a language-model endpoint failed or answered off-schema
      OverloadError          a server has as many requests waiting as it takes
      MissingDependencyError an optional package is needed (prints the pip line)

Every message says what is wrong, where, and what to do next.
"""


class FairleadError(ValueError):
    """Base of all errors that a user of Fairlead can cause and mend."""


class ConfigError(FairleadError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(FairleadError):
    """A record of a data set is malformed.

    Args:
        message: What is wrong and what to do next.
        source: File or data set name.
        line: 1-based line (JSONL, CSV) or record number.
        field: Name of the offending field.
    """

    def __init__(
        self,
        message: str,
        *,
        source: str | None = None,
        line: int | None = None,
        field: str | None = None,
    ) -> None:
        self.source, self.line, self.field = source, line, field
        where = source or ""
        if line is not None:
            where = f"{source}:{line}" if source else f"line {line}"
        if field is not None:
            where += f" (field '{field}')"
        super().__init__(f"{where.strip()}: {message}" if where else message)


class SpecError(FairleadError):
    """A spec is malformed or contradicts itself; the message starts with `file:line`."""

    def __init__(self, message: str, *, source: str | None = None, line: int | None = None) -> None:
        self.source, self.line = source, line
        where = (source or "spec") + (f":{line}" if line is not None else "")
        super().__init__(f"{where}: {message}")


class ModelError(FairleadError):
    """A model or tokenizer is missing, broken or of an unknown family."""


class SiteError(ModelError):
    """A site does not exist in this model."""


class OrganismError(FairleadError):
    """A model organism is missing or incomplete."""


class DictionaryError(FairleadError):
    """A dictionary is broken or was made for another model or site."""


class CatalogueError(DictionaryError):
    """A catalogue of concepts is broken, or was made for another model or dictionary."""


class RunError(FairleadError):
    """A run folder is locked, incomplete or cannot be written."""


class TrainingError(FairleadError):
    """Training cannot go on."""


class JudgeError(FairleadError):
    """A judge gave no usable decision."""


class LLMError(FairleadError):
    """A language-model endpoint failed or answered off-schema."""


class OverloadError(FairleadError):
    """A server has as many requests waiting as it takes.

    Args:
        message: What is wrong and what to do next.
        retry_after: Seconds after which another try is worth it.
    """

    def __init__(self, message: str, *, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class MissingDependencyError(FairleadError):
    """An optional package is needed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}'. Next: pip install 'fairlead[{extra}]'")
