"""The code location that Dagster loads: what the environment says, as definitions."""

from ktrdr_pipelines.defs.build import build_defs
from ktrdr_pipelines.settings import load_settings

defs = build_defs(load_settings())
