"""The config: every field once, recipes and command lines that set them, and the frozen result.

A recipe (`configs/*.py`) starts from `base()`, sets what differs and returns the ConfigDict from
`get_config()`. The launcher makes a frozen `Config` of it with `freeze`; each part of the library
gets only its own group of fields.
"""

from ml_collections import ConfigDict

from slmjax.config.base import FIELDS, GROUPS, base, get, help_text, override
from slmjax.config.checked import freeze
from slmjax.config.fields import quoted_literal
from slmjax.config.groups import (
    STAGE_OF,
    STAGES,
    CheckpointConfig,
    Config,
    CurateConfig,
    DataConfig,
    EvalConfig,
    EvaluateConfig,
    ForecastConfig,
    LogConfig,
    MeshConfig,
    MixtureConfig,
    ModelConfig,
    PrecisionConfig,
    StudyConfig,
    SynthesizeConfig,
    TrainConfig,
)
from slmjax.config.recipes import load_recipe, parent_folders
from slmjax.config.saved import as_today, from_dict, to_dict, to_json
from slmjax.config.trust import check_trust, named_code

__all__ = [
    "FIELDS",
    "GROUPS",
    "STAGES",
    "STAGE_OF",
    "CheckpointConfig",
    "Config",
    "ConfigDict",
    "CurateConfig",
    "DataConfig",
    "EvalConfig",
    "EvaluateConfig",
    "ForecastConfig",
    "LogConfig",
    "MeshConfig",
    "MixtureConfig",
    "ModelConfig",
    "PrecisionConfig",
    "StudyConfig",
    "SynthesizeConfig",
    "TrainConfig",
    "as_today",
    "base",
    "check_trust",
    "freeze",
    "from_dict",
    "get",
    "help_text",
    "load_recipe",
    "named_code",
    "override",
    "parent_folders",
    "quoted_literal",
    "to_dict",
    "to_json",
]
