"""Which language a text is in, told by the library langdetect (the extra `language`), the same on every machine.

The method is Nakatani 2010: naive Bayes on character n-grams, with profiles that come with the library.
"""

from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from unified import UserError, did_you_mean

#: of the random draws inside the library
SEED = 0


def language_of(text: str) -> str | None:
    """The language that most of a text is in, as an ISO 639-1 code: "en", "de", "zh" (simplified or traditional).

    The same text gives the same code in every process. None where nothing can be told: no letters, or none that the
    library knows. A text all in capital letters is read in small ones, as the library skips words in capitals. Only
    the first 10,000 characters count; of a few words the answer is a guess.

    Raises UserError: the library is not installed.
    """
    detector = _factory().create()
    detector.append(text.lower() if text.isupper() else text)
    try:
        found = str(detector.detect())
    except _library().LangDetectException:
        return None
    return None if found == detector.UNKNOWN_LANG else _without_region(found)


def known_languages() -> frozenset[str]:
    """The codes that `language_of` can give. Raises UserError: the library is not installed."""
    return frozenset(_without_region(code) for code in _factory().get_lang_list())


def checked_language(code: str) -> str:
    """A language code as `language_of` would give it: small letters, without a region ("zh-CN" is "zh").

    Raises ValueError: a language that cannot be told; UserError: the library is not installed.
    """
    found, known = _without_region(code.strip().lower()), known_languages()
    if found not in known:
        near = did_you_mean(found, known)
        meant = f", did you mean '{near}'?" if near else ","
        raise ValueError(f"no language '{code}'{meant} known: {', '.join(sorted(known))}")
    return found


def _without_region(code: str) -> str:
    return code.replace("_", "-").split("-")[0]


def _library() -> Any:
    try:
        return import_module("langdetect")
    except ImportError as error:
        raise UserError(
            "telling the language of a text needs the library langdetect, which is not installed",
            "pip install 'unified-post-training[language]'",
        ) from error


@lru_cache(maxsize=1)
def _factory() -> Any:
    """A factory of detectors of our own, so that nothing global is seeded; profiles in the order of their names."""
    factory = _library().DetectorFactory()
    folder = Path(_library().detector_factory.PROFILES_DIRECTORY)
    factory.load_json_profile([p.read_text("utf-8") for p in sorted(folder.iterdir()) if p.is_file()])
    factory.set_seed(SEED)
    return factory
