"""LeRobot's pre- and post-processor of the policy type "sinew": actions to [-1, 1] and back, everything else as it is."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from lerobot_policy_sinew.configuration_sinew import SinewConfig


def make_sinew_pre_post_processors(config: SinewConfig, dataset_stats: dict[str, dict[str, Any]] | None = None) -> tuple[Any, Any]:
    """Both pipelines; LeRobot finds this function by its name."""
    inputs, outputs, scaling = config.input_features or {}, config.output_features or {}, config.normalization_mapping
    before: Any = PolicyProcessorPipeline(
        steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device=config.device or "cpu"),
            NormalizerProcessorStep(features={**inputs, **outputs}, norm_map=scaling, stats=dataset_stats),  # type: ignore[arg-type]
        ],
        name=POLICY_PREPROCESSOR_DEFAULT_NAME,
    )
    after: Any = PolicyProcessorPipeline(
        steps=[
            UnnormalizerProcessorStep(features=outputs, norm_map=scaling, stats=dataset_stats),  # type: ignore[arg-type]
            DeviceProcessorStep(device="cpu"),
        ],
        name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after
