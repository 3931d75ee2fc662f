"""What several methods share: losses, teachers, gradients, generation, low-rank adapters."""
