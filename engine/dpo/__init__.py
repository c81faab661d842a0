"""The maths of DPO as pure functions of tensors. torch only."""
