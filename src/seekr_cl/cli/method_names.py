"""The methods' names, for help that answers without importing torch; a test holds them equal to ``METHODS``."""

METHOD_NAMES = (
    "seqft", "multitask", "replay", "derpp", "derpp_mse", "seekr", "ewc", "lwf", "agem", "gem", "ogd", "rwalk",
    "olora", "osft", "progressive_prompts", "l2p", "sapt", "tree_lora", "icarl", "inscl", "lfpt5",
    "onpolicy_replay", "sdft", "slao", "inflora",
)  # fmt: skip
