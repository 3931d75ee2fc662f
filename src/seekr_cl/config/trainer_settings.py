"""Settings of transformers' Trainer that this library decides itself: accepted, they would be dead options."""

DECIDED = {
    "output_dir": "name the folder on the command line (--output)",
    "eval_strategy": "evaluation follows each task (seekr run)",
    "eval_steps": "evaluation follows each task (seekr run)",
    "eval_delay": "evaluation follows each task (seekr run)",
    "eval_on_start": "the base model is always evaluated (seekr run)",
    "save_strategy": "use checkpoint_every",
    "save_steps": "use checkpoint_every",
    "save_total_limit": "use keep_models; of checkpoints the last two are kept",
    "load_best_model_at_end": "the model after the last step is the one whose signals are kept",
    "remove_unused_columns": "batches are made by the schedule",
    "train_sampling_strategy": "use group_by_length",
    "data_seed": "use seed",
    "dataloader_drop_last": "every example is seen in every epoch",
    "resume_from_checkpoint": "use seekr run --resume or seekr learn --resume",
    "max_steps": "use num_train_epochs or a task's epochs",
    "do_train": "learning is what the command does",
    "do_eval": "evaluation follows each task (seekr run)",
    "do_predict": "use seekr evaluate",
    "label_names": "labels are the completion's tokens",
    "label_smoothing_factor": "the task's loss is plain cross entropy",
    "push_to_hub": "use seekr push",
    "disable_tqdm": "use progress",
    "auto_find_batch_size": "the schedule is made for one batch size",
    "average_tokens_across_devices": "use loss_average",
    "use_cache": "the cache is never wanted in training",
    "length_column_name": "use group_by_length",
    "ignore_data_skip": "use seekr run --resume",
    "restore_callback_states_from_checkpoint": "use seekr run --resume",
    **dict.fromkeys(
        [
            *("prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
            *("include_for_metrics", "batch_eval_metrics", "metric_for_best_model", "greater_is_better"),
        ],
        "evaluation generates and scores text (seekr run)",
    ),
    **dict.fromkeys(
        ("save_only_model", "save_on_each_node", "enable_jit_checkpoint"), "model and memory are saved after each task"
    ),
    **dict.fromkeys(
        ("hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        "use seekr push",
    ),
    **dict.fromkeys(
        [
            *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
            *("dataloader_multiprocessing_context", "dataloader_in_order"),
        ],
        "only dataloader_num_workers is used",
    ),
}
"""By name, what to use instead."""
