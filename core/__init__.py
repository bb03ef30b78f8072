"""The words of the house: records, config, hardware, chat templates, run directory, checkpoints, tracking, errors.

Everything here imports without ray, deepspeed or vllm and without a GPU.
"""
