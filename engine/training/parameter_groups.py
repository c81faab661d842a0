"""Which parameters share a learning rate: all of them, or under LoRA+ two groups."""

from collections.abc import Mapping
from typing import Any

from torch.nn import Parameter


def parameter_groups(parameters: Mapping[str, Parameter], rate: float, plus_ratio: float) -> list[dict[str, Any]]:
    """The groups of an optimizer, in the parameters' order within each.

    Under LoRA+ (Hayou et al. 2024) the B matrices move faster: they start at 0, and in a wide model A and B otherwise
    cannot both move by as much as they should. DoRA's lengths move with them. Schedules and clipping are over all
    groups alike. Parameters of other kinds keep `rate`, so whole models have one group whatever the ratio.

    Args:
        rate: learning rate of the first group.
        plus_ratio: that of B as a multiple of it; 0 for one group.
    """
    if not plus_ratio:
        return [{"params": list(parameters.values()), "lr": rate}]
    faster = {name for name in parameters if ".lora_B." in name or ".lora_magnitude_vector." in name}
    slow = [value for name, value in parameters.items() if name not in faster]
    fast = [value for name, value in parameters.items() if name in faster]
    groups = [{"params": slow, "lr": rate}, {"params": fast, "lr": rate * plus_ratio}]
    return [group for group in groups if group["params"]]
