"""Errors in the language of the gateway's login.

Source: the Spanish words before a suffix that stays English,
https://github.com/wrighter/ib-scripts/issues/1, and the German text of 200,
https://github.com/pst-group/pysystemtrade/issues/1270 (grade L). The foreign text is this
simulator's (grade P): it represents any language that a client does not understand.
"""

from dataclasses import replace

from ktrdr_pipelines.simulator.protocol.replies import ApiError
from ktrdr_pipelines.simulator.requests.refusals import SERVICE, UNKNOWN_CONTRACT
from ktrdr_pipelines.simulator.variants import Language

SPANISH_SERVICE = "Mensaje de error de los servicios de datos de mercado históricos:"
GERMAN_UNKNOWN_CONTRACT = "Es wurde keine Wertpapierdefinition zu der Anfrage gefunden"
FOREIGN = "要求を処理できませんでした。"


def localised(language: Language, error: ApiError) -> ApiError:
    """Return an error or notice in a language; a text without a known translation stays English."""
    if language is Language.SPANISH and error.text.startswith(SERVICE):
        return replace(error, text=SPANISH_SERVICE + error.text.removeprefix(SERVICE))
    if language is Language.GERMAN and error.text == UNKNOWN_CONTRACT:
        return replace(error, text=GERMAN_UNKNOWN_CONTRACT)
    return replace(error, text=FOREIGN) if language is Language.FOREIGN else error
