"""Several processes: sharded tensors, and the wrappers that a distributed Trainer puts around a model."""
